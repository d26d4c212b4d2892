"""Adapters on a frozen base: LoRA (arXiv:2106.09685), QLoRA on 4-bit weights (arXiv:2305.14314)."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel, set_seed

from slimtune.config import Config, Lora
from slimtune.errors import QualityError, SettingsError
from slimtune.models import loading, mixed
from slimtune.models.compute import Compute
from slimtune.training import initialisation, sharding, streamable
from slimtune.training.effect import NoEffect
from slimtune.training.initialisation import Start

ALL = "all-linear"


class Learner(NamedTuple):
    """What learns: a whole model in float32, or an adapter on a frozen one and what it began as."""

    model: PreTrainedModel | PeftModel
    start: Start | None = None


def attach(
    model: PreTrainedModel, settings: Lora, *, seed: int, quantized: bool = False
) -> PeftModel:
    """`model` with trainable adapters; its own weights are frozen.

    Raises SettingsError naming the linear layers there are when a target module is none of them.
    """
    require_targets(settings, [name for name, module in model.named_modules() if _linear(module)])
    initialisation.require_sensible(settings, quantized)
    _require_own_output(model, settings)
    saved = settings.modules_to_save
    _require_named(
        "lora.modules_to_save", saved, [name for name, _ in model.named_modules() if name], "module"
    )
    if quantized:
        _require_whole(model, saved)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    set_seed(seed)
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL if ALL in targets else targets,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=initialisation.PEFT_NAMES.get(settings.initialisation, True),
        modules_to_save=saved or None,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if settings.initialisation == "loftq":
        initialisation.make_up_for_rounding(adapted)
    mixed.adapt(adapted)
    return adapted


def require_choices(config: Config) -> None:
    """SettingsError for choices that do not go together, before anything is loaded."""
    quantized, whole = config.model.quantization != "none", config.lora.method == "full"
    sharding.require_supported(config, whole=whole, quantized=quantized)
    if whole and quantized:
        raise SettingsError(
            "lora.method: full on a quantised base",
            "rounded weights cannot learn, only an adapter beside them can",
            "leave out --use-quantization, or use --method lora",
        )
    if config.lora.dora and config.model.quantization == "int8":
        raise SettingsError(
            "lora.dora: on a base in 8 bits",
            "DoRA needs each weight's length, and peft cannot read it from bitsandbytes' int8",
            "use --use-quantization nf4, or leave out one of the two",
        )
    initialisation.require_sensible(config.lora, quantized)
    streamable.require_possible(config)


def _require_whole(model: PreTrainedModel, saved: Sequence[str]) -> None:
    """SettingsError where a module that is to be trained whole is kept in 4 or 8 bits."""
    for path, parameter in model.named_parameters():
        inside = [name for name in saved if f".{name}." in f".{path}"]
        if inside and not parameter.is_floating_point():
            raise SettingsError(
                f"lora.modules_to_save: {inside[0]} is quantised",
                "rounded weights cannot learn",
                "leave it to --lora-target-modules, or leave out --use-quantization",
            )


def _require_own_output(model: PreTrainedModel, settings: Lora) -> None:
    """SettingsError where a start that moves the output layer would move the embedding with it."""
    moves = settings.initialisation in initialisation.PEFT_NAMES
    if moves and model.config.tie_word_embeddings and "lm_head" in settings.target_modules:
        raise SettingsError(
            f"lora.initialisation: {settings.initialisation} on a tied lm_head",
            "it takes directions out of the output layer, which is the embedding here",
            "leave lm_head out of --lora-target-modules, or use --lora-init default",
        )


def require_targets(settings: Lora, layers: Sequence[str]) -> None:
    """SettingsError unless each target module is among the full names `layers`, or ends one.

    peft itself is content with one that fits, and leaves out the others without a word.
    """
    named = settings.target_modules
    if not named:
        raise SettingsError("lora.target_modules: empty", "nothing would learn", f"write {ALL}")
    targets = [name for name in named if name != ALL]
    _require_named("lora.target_modules", targets, layers, "linear layer")


def _require_named(setting: str, wanted: Sequence[str], there: Sequence[str], what: str) -> None:
    """SettingsError unless each name is among the full names `there`, or ends one."""
    known = [f".{name}" for name in there]
    missing = [name for name in wanted if not any(one.endswith(f".{name}") for one in known)]
    if not missing:
        return
    names = sorted({name.rsplit(".", 1)[-1] for name in there} - {str(i) for i in range(1000)})
    close = difflib.get_close_matches(missing[0], names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise SettingsError(
        f"{setting}: {', '.join(missing)}",
        f"no {what} of the model has such a name",
        f"{meant}its {what}s are {', '.join(names)}"
        + (f"; {ALL} takes all of them" if what == "linear layer" else ""),
    )


def _linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def save_adapter(model: PeftModel, folder: Path, base: str, start: Start | None = None) -> None:
    """Write the adapter; raises NoEffect when it would not change the base at all.

    `start` is what `initialisation.start_of` gave before training: with it the adapter is written
    relative to the base as it is on disk.
    """
    updates = [p.detach().abs().max() for n, p in model.named_parameters() if ".lora_B." in n]
    if not any(update > 0 for update in updates):
        raise NoEffect("adapter", "all its B matrices are still zero")
    model.peft_config["default"].base_model_name_or_path = base
    if start:
        initialisation.save_relative(model, folder, start)
    else:
        model.save_pretrained(folder)


@torch.no_grad()
def next_token_log_probabilities(model: PeftModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the last token's successors: (vocabulary,) float32, on the CPU."""
    model.eval()
    logits = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0, -1]
    return logits.float().log_softmax(0).cpu()


def require_effect(
    folder: Path, base: str, ids: Sequence[int], trained: torch.Tensor | None, compute: Compute
) -> float:
    """How far the adapter of `folder` moves a freshly loaded base: max |Δ log p| after `ids`.

    Raises QualityError where it moves nothing, or not to where training had come: `trained`, None
    where the base loaded again is not what the adapter is relative to (loftq: the exact weights).
    """
    model = loading.load_model(base, compute, adapter=folder)
    adapted = next_token_log_probabilities(model, ids)
    with model.disable_adapter():
        plain = next_token_log_probabilities(model, ids)
    moved = (adapted - plain).abs().max().item()
    missed = (adapted - trained).abs().max().item() if trained is not None else 0.0
    if moved == 0:
        raise NoEffect("adapter", "loaded back onto its base it gives the base's own answers")
    rounding = 1e-3 if mixed.numbers_of(model.get_base_model()) == torch.float32 else 5e-2
    if missed > max(0.5 * moved, rounding):
        raise QualityError(
            "the saved adapter is not the trained one",
            f"loaded back onto its base it is off by {missed:.3g} in log-probability, of a change "
            f"of {moved:.3g}",
            "report it with the settings of this run",
        )
    return moved
