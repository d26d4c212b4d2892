"""adapter_config.json by an allow-list: each key is understood, left to peft, or refused by name.

A key that is not known, or a value of one that is, may change what the adapter does. Nothing here
guesses: what the formula W + B A * scale does not cover is merged by peft with the model in memory,
and what peft itself does not load as it was trained (0.21) is refused with the way to save it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimtune.errors import InputError
from slimtune.models.json_files import read_model_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
DEFAULT_RANK = DEFAULT_ALPHA = 8  # peft's, where an older or foreign file leaves one out

# Part of the formula in adapters.py, or of the choice of modules, which the tensors' names show.
_UNDERSTOOD = {
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "modules_to_save", "peft_type", "r",
    "rank_pattern", "target_modules", "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
# Of training, of a start whose name decides, or of where the file comes from.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "merge_weights",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
# Where set, the merge needs more than rows of one weight, or is another formula: peft has it.
_BY_PEFT = {"ensure_weight_tying", "kasa_config", "lora_bias", "velora_config"}
_NO_MERGE = "keep base and adapter apart in the program that trained it"
_REFUSED = {
    "alora_invocation_tokens": "it acts only after certain tokens, and no weights can do that",
    "arrow_config": "it routes between adapters, token by token",
    "layer_replication": "it makes more layers out of the base's, and the base has none of them",
    "megatron_config": "it was trained in Megatron's layers, and Llama's are others",
    "monteclora_config": "it draws its weights at random",
    "target_parameters": "it changes parameters that are no layer's, as experts' are",
    "use_bdlora": "its matrices are cut into blocks for servers that share a model out",
    "use_qalora": "it belongs to a GPTQ base, whose groups it adds to",
}

# Starts that leave the base as it is: nothing of them is left once A and B are saved.
_PLAIN_STARTS = {"gaussian", "eva", "orthogonal", "mica"}
# Starts that take something out of the base, which peft does again, to the bit, when it loads.
_MOVED_STARTS = {"pissa", "olora"}
_LOST_STARTS = {
    "loftq": "LoftQ put rounded weights in the base's place, and peft rounds them again only on a "
    "GPU, with the package scipy",
    "corda": "CorDA moved the base by statistics of its data, and they are not saved with it",
    "lora_ga": "LoRA-GA moved the base by a gradient that is not saved with it",
    "pissa_niter_": "fast PiSSA moved the base by a random search that comes out otherwise each "
    "time",
}
_CONVERT = (
    "save it where it was trained with peft's save_pretrained(..., "
    "path_initial_model_for_weight_conversion=START); a stopped run of ours: --resume",
    "merge it where it was trained, with peft's merge_and_unload, and give the merged folder",
)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter; InputError naming what is not understood in it."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{folder}: no LoRA adapter here",
            f"{ADAPTER_CONFIG} is missing",
            "give the lora_adapter folder that train_lora.py wrote",
        )
    config = read_model_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{folder}: an adapter of type {config.get('peft_type')}",
            "SlimTune reads LoRA adapters",
            "train with LoRA",
        )
    if config.get("fan_in_fan_out"):
        raise InputError(
            f"{folder}: fan_in_fan_out is set",
            "its weights are stored transposed, as GPT-2's are; no Llama's are",
            "train again without it",
        )
    _require_known(folder, config)
    _require_form(folder, config)
    _require_start(folder, config)
    return config


def needs_peft(config: Mapping[str, Any]) -> list[str]:
    """The keys whose merge is peft's, with the model in memory; none for W + B A * scale."""
    found = [key for key in sorted(_BY_PEFT) if config.get(key)]
    start = str(config.get("init_lora_weights", True))
    return [*found, f"init_lora_weights: {start}"] if start in _MOVED_STARTS else found


def _require_known(folder: Path, config: Mapping[str, Any]) -> None:
    for key, why in _REFUSED.items():
        if config.get(key):
            raise InputError(f"{folder}: {key} is set in {ADAPTER_CONFIG}", why, _NO_MERGE)
    known = _UNDERSTOOD | _WITHOUT_EFFECT | _BY_PEFT
    for key, value in config.items():
        if value and key not in known:
            raise InputError(
                f"{folder}: {key} in {ADAPTER_CONFIG} is not known here",
                f"it is {str(value)[:60]!r}, and may change what the adapter does",
                "merge it with the program that wrote it; delete the key if you know it to have no "
                "effect",
            )


# What the formula computes with; a `{}`, a null and a key left out are peft's own default.
_FORM: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "trainable_token_indices": (list, dict),
    "modules_to_save": (list,),
}


def _require_form(folder: Path, config: Mapping[str, Any]) -> None:
    wrong = [
        key
        for key, kinds in _FORM.items()
        if config.get(key) is not None and not isinstance(config[key], kinds)
    ]
    ranks = {"r": config.get("r", DEFAULT_RANK), **(config.get("rank_pattern") or {})}
    if not wrong:
        wrong = [key for key, rank in ranks.items() if not isinstance(rank, int) or rank < 1]
    if wrong:
        raise InputError(
            f"{folder}: {wrong[0]} in {ADAPTER_CONFIG} is {config.get(wrong[0], ranks)!r}",
            "peft writes something else there",
            "copy the adapter's files again, or train it again",
        )


def _require_start(folder: Path, config: Mapping[str, Any]) -> None:
    """InputError for a start after which peft's own reload is another model than the trained."""
    start = str(config.get("init_lora_weights", True))
    if start in {"True", "False", "None"} | _PLAIN_STARTS | _MOVED_STARTS:
        return
    for name, why in _LOST_STARTS.items():
        if start.startswith(name):
            raise InputError(
                f"{folder}: init_lora_weights: {start}, and what it did to the base is not saved",
                f"{why}: loaded onto its base it is not the model that was trained",
                _CONVERT[start == "loftq"],
            )
    raise InputError(
        f"{folder}: init_lora_weights: {start} in {ADAPTER_CONFIG} is not known here",
        "some starts move the base, and a merge must know which",
        "merge it with the program that wrote it",
    )
