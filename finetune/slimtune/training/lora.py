"""Adapters on a frozen base: LoRA (arXiv:2106.09685), QLoRA on 4-bit weights (arXiv:2305.14314)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel, set_seed

from slimtune.config import Lora
from slimtune.console import QualityError, SettingsError

ALL = "all-linear"


def attach(
    model: PreTrainedModel, settings: Lora, *, seed: int, quantized: bool = False
) -> PeftModel:
    """`model` with trainable adapters; its own weights are frozen.

    Raises SettingsError naming the linear layers there are when a target module is none of them.
    """
    require_targets(settings, [name for name, module in model.named_modules() if _linear(module)])
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _keep_differentiable(model)
    set_seed(seed)
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL if ALL in targets else targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def require_targets(settings: Lora, layers: Sequence[str]) -> None:
    """SettingsError unless each target module is among the full names `layers`, or ends one.

    peft itself is content with one that fits, and leaves out the others without a word.
    """
    known = [f".{layer}" for layer in layers]
    targets = [name for name in settings.target_modules if name != ALL]
    missing = [name for name in targets if not any(one.endswith(f".{name}") for one in known)]
    if missing or not settings.target_modules:
        names = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
        raise SettingsError(
            f"lora.target_modules: {', '.join(missing) or 'empty'}",
            "no layer of the model has such a name",
            f"its linear layers are {', '.join(names)}; {ALL} takes all of them",
        )


def _keep_differentiable(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes 0.50 repacks the 4-bit weights that compute in
    evaluation mode, and packed ones have no backward pass: after the first validation, layers
    would get no gradient from those above them."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def save(model: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter; raises QualityError when it would not change the base at all."""
    updates = [p.detach().abs().max() for n, p in model.named_parameters() if ".lora_B." in n]
    if not any(update > 0 for update in updates):
        raise QualityError(
            "the trained adapter changes nothing",
            "all its B matrices are still zero",
            "train longer or raise --learning-rate",
        )
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
