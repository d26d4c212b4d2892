"""LoRA adapter folders: what they hold, read from headers, and whether a base model is theirs.

A weight W (out x in) of the base is changed by B @ A * scale, A (rank x in) and B (out x rank).
LoRA: arXiv:2106.09685; rank-stabilised scale alpha / sqrt(rank): arXiv:2312.03732.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from slimtune.console import InputError
from slimtune.models.checkpoints import EMBEDDING, OUTPUT, Checkpoint
from slimtune.models.folders import read_json
from slimtune.models.headers import TensorInfo, read_header, read_tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Settings of peft that make a merge more than W + B @ A * scale.
_SPECIAL = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "trainable_token_indices",
            "layer_replication", "target_parameters", "use_qalora", "use_bdlora")  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The two low-rank matrices of one weight."""

    a: TensorInfo
    b: TensorInfo
    scale: float

    def delta(self, start: int, stop: int) -> torch.Tensor:
        """(B @ A) * scale in float32, rows start..stop of the weight: shape (stop - start, in)."""
        a, b = read_tensor(self.a).float(), read_tensor(self.b).float()
        return (b[start:stop] @ a) * self.scale


class Adapter:
    """A LoRA adapter folder as peft writes it, read from headers.

    `pairs` maps the base's weight name to its pair; `others` are the tensors that are neither in a
    pair nor a copy of its weight (`replaced`).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        _require_adapter(self.folder)
        self.tensors = read_header(self.folder / WEIGHTS_FILE)

    @cached_property
    def config(self) -> dict:
        return read_json(self.folder / CONFIG_FILE)

    @property
    def base(self) -> str:
        """The base model it says it was trained on."""
        return self.config.get("base_model_name_or_path") or "a base it does not name"

    @cached_property
    def pairs(self) -> dict[str, Pair]:
        modules = [name.removesuffix(_A) for name in self.tensors if name.endswith(_A)]
        return {
            module.removeprefix(_PREFIX) + ".weight": Pair(
                self.tensors[module + _A], self.tensors[module + _B], self.scale(module)
            )
            for module in modules
            if module + _B in self.tensors
        }

    @cached_property
    def replaced(self) -> dict[str, TensorInfo]:
        """Weights of which peft saved its own copy because LoRA works on top of it (lm_head)."""
        copies = (weight.removesuffix(".weight") for weight in self.pairs)
        names = {module: f"{_PREFIX}{module}.base_layer.weight" for module in copies}
        return {
            f"{module}.weight": self.tensors[name]
            for module, name in names.items()
            if name in self.tensors
        }

    @property
    def others(self) -> list[str]:
        pairs = {w.removesuffix(".weight") for w in self.pairs}
        parts = (_A, _B, ".base_layer.weight")
        used = {_PREFIX + module + part for module in pairs for part in parts}
        return sorted(self.tensors.keys() - used)

    @property
    def plain(self) -> bool:
        """Whether W + B @ A * scale is the whole merge."""
        return not self.others and not any(self.config.get(key) for key in _SPECIAL)

    def scale(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) with use_rslora; patterns as peft reads them."""
        rank = self._pattern("rank_pattern", module, self.config["r"])
        alpha = self._pattern("alpha_pattern", module, self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _pattern(self, key: str, module: str, default: float) -> float:
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def require_base(self, base: Checkpoint) -> None:
        """InputError, naming both, unless every pair fits a weight of `base`."""
        shapes = base.shapes
        if base.tied:
            shapes.setdefault(OUTPUT, shapes.get(EMBEDDING, ()))
        for weight, pair in self.pairs.items():
            needed = (pair.b.shape[0], pair.a.shape[1])
            found = shapes.get(weight)
            if found is None or (found != needed and "quantization_config" not in base.config):
                raise InputError(
                    f"{self.folder}: this adapter is for another base than {base.folder}",
                    f"{weight} must be {needed} for it, here it is {found or 'missing'}",
                    f"give the model it was trained on as --base-model: {self.base}",
                )


def _require_adapter(folder: Path) -> None:
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder}: no LoRA adapter here",
            f"{CONFIG_FILE} is missing",
            "give the lora_adapter folder that train_lora.py wrote",
        )
    kind = read_json(folder / CONFIG_FILE).get("peft_type")
    if kind != "LORA":
        raise InputError(
            f"{folder}: an adapter of type {kind}",
            "SlimTune reads LoRA adapters",
            "train with LoRA",
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise InputError(
            f"{folder}: no LoRA weights here",
            f"{WEIGHTS_FILE} is missing (pickled .bin weights are not read)",
            "run train_lora.py to the end, or copy the file again",
        )
