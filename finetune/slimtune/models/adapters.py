"""LoRA adapter folders: what they hold, whether a base is theirs, and what they do to its rows.

A weight W (out x in) of the base becomes W + B @ A * scale, A (rank x in) and B (out x rank); an
embedding W (tokens x dim) is changed by the transpose, or has trained rows put in its place. LoRA:
arXiv:2106.09685; rank-stabilised scale alpha / sqrt(rank): arXiv:2312.03732. DoRA
(arXiv:2402.09353) gives each row of the sum the norm it learned: m * V / |V| with
V = W + B @ A * scale. Sums are made in float32; the caller rounds once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimtune.models.headers import TensorInfo, read_tensor
from slimtune.models.json_files import read_model_json

if TYPE_CHECKING:  # imported where a tensor is made: reading a folder's headers needs none
    import torch

import math
import re
from functools import cached_property
from pathlib import Path

from slimtune.console import InputError
from slimtune.models.headers import read_header
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint

RowsShape = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """The two low-rank matrices of one weight; `transposed` for an embedding."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool = False
    magnitude: TensorInfo | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def fits(self, shape: RowsShape | None) -> RowsShape | None:
        """None if a weight of this shape is theirs, else the shape they need."""
        needed = (self.b.shape[0], self.a.shape[1])
        if self.transposed:
            needed = needed[::-1]
        return None if shape == needed else needed

    def merge(self, rows: "torch.Tensor", start: int) -> "torch.Tensor":
        """`rows` of the weight from row `start` on, in float32, with the change made."""
        merged = rows.float().add_(self.delta(start, start + len(rows)))
        if self.magnitude is None:
            return merged
        norms = merged.norm(dim=1)
        factors = read_tensor(self.magnitude, start, start + len(rows)).float() / norms
        return factors.view(-1, 1) * merged

    def delta(self, start: int, stop: int) -> "torch.Tensor":
        """(B @ A) * scale in float32, rows start..stop of the weight: shape (stop - start, in)."""
        if self.transposed:
            product = (read_tensor(self.b).float() @ read_tensor(self.a).float()[:, start:stop]).T
        else:
            product = read_tensor(self.b, start, stop).float() @ read_tensor(self.a).float()
        return product * self.scale


@dataclass(frozen=True)
class Tokens:
    """Rows `indices` of an embedding or output layer, trained alone; `rows` in the same order."""

    indices: tuple[int, ...]
    rows: TensorInfo

    def fits(self, shape: RowsShape | None) -> RowsShape | None:
        """None if a weight of this shape is theirs, else the smallest that is."""
        needed = (max(self.indices) + 1, self.rows.shape[1])
        fitting = shape and shape[0] >= needed[0] and shape[1] == needed[1]
        return None if fitting else needed

    def merge(self, rows: "torch.Tensor", start: int) -> "torch.Tensor":
        """`rows` of the weight from row `start` on, in float32, the trained ones among them."""
        merged, trained = rows.float(), read_tensor(self.rows).float()
        for position, index in enumerate(self.indices):
            if start <= index < start + len(rows):
                merged[index - start] = trained[position]
        return merged


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_TOKENS = ".token_adapter.trainable_tokens_delta"
_WRAPPED = re.compile(r"\.(token_adapter\.)?base_layer(?=\.(weight|bias)$)")
# Settings of peft whose merge needs more than a few rows of a weight, or is not LoRA's formula.
_SPECIAL = ("lora_bias", "layer_replication", "target_parameters", "use_qalora", "use_bdlora",
            "ensure_weight_tying")  # fmt: skip


class Adapter:
    """A LoRA adapter folder as peft writes it, read from headers.

    By the base's weight name: `pairs` add to it, `replaced` stand in its place (modules_to_save, a
    resized vocabulary, biases), `tokens` replace single rows. `others` are tensors that are none of
    these. Raises InputError for a folder that is no LoRA adapter, or one with transposed weights.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        _require_adapter(self.folder)
        self.tensors = read_header(self.folder / ADAPTER_WEIGHTS)

    @cached_property
    def config(self) -> dict:
        return read_model_json(self.folder / ADAPTER_CONFIG)

    @property
    def base(self) -> str:
        """The base model it says it was trained on."""
        return self.config.get("base_model_name_or_path") or "a base it does not name"

    @cached_property
    def pairs(self) -> dict[str, Pair]:
        linear = {f"{m}.weight": self._pair(m, _A, _B) for m in self._modules(_A, _B)}
        tokens = {
            f"{m}.weight": self._pair(m, _EMBEDDING_A, _EMBEDDING_B, transposed=True)
            for m in self._modules(_EMBEDDING_A, _EMBEDDING_B)
        }
        return linear | tokens

    @cached_property
    def replaced(self) -> dict[str, TensorInfo]:
        """Weights of which the adapter brings a copy of its own."""
        found = {_WRAPPED.sub("", name): info for name, info in self.tensors.items()}
        return {
            name.removeprefix(_PREFIX): info
            for name, info in found.items()
            if name.endswith((".weight", ".bias")) and ".lora_" not in name
        }

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Rows that were trained alone (trainable_token_indices)."""
        indices = self.config.get("trainable_token_indices") or {}
        return {
            f"{m}.weight": Tokens(
                tuple(indices[m.split(".")[-1]] if isinstance(indices, dict) else indices),
                self.tensors[f"{_PREFIX}{m}{_TOKENS}"],
            )
            for m in self._modules(_TOKENS)
        }

    @cached_property
    def others(self) -> list[str]:
        """Tensors that this reading of the adapter has no use for."""
        parts = {_A, _B, _EMBEDDING_A, _EMBEDDING_B, _MAGNITUDE}
        used = {f"{_PREFIX}{w.removesuffix('.weight')}{part}" for w in self.pairs for part in parts}
        used |= {f"{_PREFIX}{weight.removesuffix('.weight')}{_TOKENS}" for weight in self.tokens}
        replaced = {name for name in self.tensors if name.endswith((".weight", ".bias"))}
        used |= {name for name in replaced if ".lora_" not in name}
        return sorted(self.tensors.keys() - used)

    def streams(self, tied: bool) -> bool:
        """Whether rows can be merged one by one, on a base whose output layer is `tied` or not.

        DoRA on an embedding needs the norm of whole columns; rows trained alone in a tied
        embedding would have to reach an output layer with a delta of its own.
        """
        columns = any(pair.transposed and pair.magnitude for pair in self.pairs.values())
        shared = tied and bool(self.tokens) and bool({EMBEDDING, OUTPUT} & self.pairs.keys())
        return not (columns or shared or any(self.config.get(key) for key in _SPECIAL))

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

    def _modules(self, *parts: str) -> list[str]:
        """Modules, without peft's prefix, of which all `parts` are there."""
        names = [name.removesuffix(parts[0]) for name in self.tensors if name.endswith(parts[0])]
        whole = [name for name in names if all(name + part in self.tensors for part in parts)]
        return [name.removeprefix(_PREFIX) for name in whole]

    def _pair(self, module: str, a: str, b: str, *, transposed: bool = False) -> Pair:
        name = _PREFIX + module
        magnitude = self.tensors.get(name + _MAGNITUDE)
        return Pair(
            self.tensors[name + a],
            self.tensors[name + b],
            self.scale(module),
            transposed,
            magnitude,
        )

    def require_base(self, base: Checkpoint) -> None:
        """InputError, naming both, unless all that streams fits the weights of `base`."""
        shapes = base.shapes
        if base.tied:
            shapes.setdefault(OUTPUT, shapes.get(EMBEDDING, ()))
        for weight, info in self.replaced.items():
            resized = weight in (EMBEDDING, OUTPUT)
            found = shapes.get(weight)
            if found is None or found[resized:] != info.shape[resized:]:
                raise self._misfit(base, weight, info.shape, found)
            shapes[weight] = info.shape
        for weight, change in (self.pairs | self.tokens).items():
            found = shapes.get(weight)
            needed = change.fits(found)
            if needed and (found is None or "quantization_config" not in base.config):
                raise self._misfit(base, weight, needed, found)

    def _misfit(self, base: Checkpoint, weight: str, needed: object, found: object) -> InputError:
        return InputError(
            f"{self.folder}: this adapter is for another base than {base.folder}",
            f"{weight} must be {needed} for it, here it is {found or 'missing'}",
            f"give the model it was trained on as --base-model: {self.base}",
        )

    def require_used(self) -> None:
        """InputError naming a tensor of the adapter that nothing would use."""
        if self.others:
            raise InputError(
                f"{self.folder}: nothing uses {self.others[0]}",
                f"{len(self.others)} of {len(self.tensors)} adapter tensors are no part of LoRA",
                "merge it with the program that wrote it, or train the adapter again here",
            )


def _require_adapter(folder: Path) -> None:
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
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"{folder}: no LoRA weights here",
            f"{ADAPTER_WEIGHTS} is missing (pickled .bin weights are not read)",
            "run train_lora.py to the end, or copy the file again",
        )
