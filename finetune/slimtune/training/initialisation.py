"""Where the matrices of an adapter start, and what is saved when the start moved the base.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) take the base's main directions out of it and
into A₀ and B₀; LoftQ (arXiv:2310.08659) starts with what quantisation lost. What was learned is
B A - B₀ A₀ in each case: an ordinary adapter of twice the rank for the base as it is on disk, which
every merge and every evaluation understands.
"""

import math
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file

from slimtune.config import Lora
from slimtune.errors import SettingsError
from slimtune.models.folders import local_folder
from slimtune.models.weights import Checkpoint

PEFT_NAMES = {"pissa": "pissa_niter_16", "olora": "olora"}  # 16: an SVD in seconds
_NAME = "default"  # of the adapter, as peft calls the first one
_WEIGHTS = "adapter_model.safetensors"

Start = dict[str, torch.Tensor]


def require_sensible(settings: Lora, quantized: bool) -> None:
    """SettingsError where the base's kind and the start do not go together."""
    if settings.initialisation == "loftq" and not quantized:
        raise SettingsError(
            "lora.initialisation: loftq without quantisation",
            "it starts with what quantisation lost, and here nothing is lost",
            "add --use-quantization, or choose another start",
        )
    if settings.initialisation in PEFT_NAMES and quantized:
        raise SettingsError(
            f"lora.initialisation: {settings.initialisation} on a quantised base",
            "it takes directions out of the base's weights, and rounding them again is not exact",
            "use --lora-init loftq, or leave out --use-quantization",
        )
    if settings.initialisation == "loftq" and settings.dora:
        raise SettingsError(
            "lora.initialisation: loftq with DoRA",
            "the lengths that DoRA keeps would be those of the rounded base",
            "leave out one of the two",
        )


def make_up_for_rounding(model: PeftModel) -> None:
    """B A · scale = best rank-r approximation of W - Q(W), layer by layer: LoftQ in one step."""
    checkpoint = Checkpoint(local_folder(model.get_base_model().config._name_or_path))
    for name, layer in model.get_base_model().named_modules():
        # A layer that is not quantised has lost nothing: with A and B both zero it never learned.
        if not isinstance(layer, LoraLayer) or layer.base_layer.weight.is_floating_point():
            continue
        held = dequantize_module_weight(layer.base_layer).float()
        lost = checkpoint.read(f"{name}.weight").to(held.device).float() - held
        rank, scale = layer.r[_NAME], layer.scaling[_NAME]
        u, s, v = torch.svd_lowrank(lost, q=min(2 * rank, *lost.shape), niter=4)
        root = (s[:rank] / scale).sqrt()
        layer.lora_A[_NAME].weight.data.copy_(root[:, None] * v[:, :rank].T)
        layer.lora_B[_NAME].weight.data.copy_(u[:, :rank] * root)


def start_of(model: PeftModel, settings: Lora) -> Start | None:
    """A₀ and B₀ of every layer, before the first step; None for a start that changes nothing."""
    if settings.initialisation == "default":
        return None
    state = get_peft_model_state_dict(model)
    return {name: one.detach().clone() for name, one in state.items() if ".lora_" in name}


def save_relative(model: PeftModel, folder: Path, start: Start) -> None:
    """Write [B, -B₀] [A; A₀] with the scale of the trained adapter."""
    state = get_peft_model_state_dict(model)
    for name, first in start.items():
        if ".lora_A." in name:
            state[name] = torch.cat([state[name], first.to(state[name])])
        elif ".lora_B." in name:
            state[name] = torch.cat([state[name], -first.to(state[name])], dim=1)
    config = model.peft_config[_NAME]
    doubled = {
        "r": 2 * config.r,
        "lora_alpha": config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    before = {name: vars(config)[name] for name in doubled}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: one.contiguous().cpu() for name, one in state.items()},
        folder / _WEIGHTS,
        metadata={"format": "pt"},
    )
    vars(config).update(doubled)
    config.save_pretrained(folder)
    vars(config).update(before)
