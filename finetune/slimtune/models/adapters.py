"""LoRA adapter folders: which changes of which weights they hold, and whether a base is theirs.

LoRA: arXiv:2106.09685; rank-stabilised scale alpha / sqrt(rank): arXiv:2312.03732. What a change
does to the rows of its weight is in weight_changes.py.
"""

import math
import re
from functools import cached_property
from pathlib import Path

import numpy as np

from slimtune.errors import InputError
from slimtune.models.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    DEFAULT_ALPHA,
    DEFAULT_RANK,
    needs_peft,
    read_adapter_config,
)
from slimtune.models.headers import TensorInfo, read_bytes, read_header
from slimtune.models.origin import require_after_trim, require_origin
from slimtune.models.weight_changes import Pair, Tokens
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint

_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_TOKENS = ".token_adapter.trainable_tokens_delta"
_WRAPPED = re.compile(r"\.(token_adapter\.)?base_layer(?=\.(weight|bias)$)")
# Where the vocabulary grew, peft saves a module of modules_to_save three times: as it is, as this
# copy of it, and as it was before training.
_COPY = re.compile(r"\.(modules_to_save|original_module)(?=\.(weight|bias)$)")


class Adapter:
    """A LoRA adapter folder as peft writes it, read from headers.

    By the base's weight name: `pairs` add to it, `replaced` stand in its place (modules_to_save, a
    resized vocabulary, biases), `tokens` replace single rows. `others` are tensors that are none of
    these. Raises InputError for a folder that is no LoRA adapter, one whose config is not
    understood, and one with no tensors, empty ones, or ones that peft would not find.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config = read_adapter_config(self.folder)
        self.tensors = _read_tensors(self.folder)

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
        kept = {name: info for name, info in self.tensors.items() if not self.is_duplicate(name)}
        found = {_WRAPPED.sub("", name): info for name, info in kept.items()}
        return {
            name.removeprefix(_PREFIX): info
            for name, info in found.items()
            if name.endswith((".weight", ".bias")) and ".lora_" not in name
        }

    def is_duplicate(self, tensor: str) -> bool:
        """Whether it is a copy, trained or not, of a module that is there under its own name.

        A tied output layer has the trained rows of its embedding, saved twice.
        """
        if tensor == _PREFIX + OUTPUT.replace(".weight", _TOKENS):
            tied = self.tensors.get(_PREFIX + EMBEDDING.replace(".weight", _TOKENS))
            return bool(tied) and np.array_equal(read_bytes(tied), read_bytes(self.tensors[tensor]))
        plain = _COPY.sub("", tensor)
        return plain != tensor and plain in self.tensors

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding it brings along; None where the base's own is used."""
        return self.replaced[EMBEDDING].shape[0] if EMBEDDING in self.replaced else None

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """Rows that were trained alone (trainable_token_indices)."""
        return {f"{m}.weight": self._trained_rows(m) for m in self._modules(_TOKENS)}

    def _trained_rows(self, module: str) -> Tokens:
        indices = self.config.get("trainable_token_indices") or []
        if isinstance(indices, dict):  # a tied output layer has its embedding's
            indices = indices.get(module.split(".")[-1], next(iter(indices.values())))
        rows = self.tensors[f"{_PREFIX}{module}{_TOKENS}"]
        if len(indices) != rows.shape[0]:
            raise InputError(
                f"{self.folder}: {rows.shape[0]} trained rows for {module}",
                f"trainable_token_indices in {ADAPTER_CONFIG} names {len(indices)}",
                "copy both files of the adapter again, from one and the same run",
            )
        return Tokens(tuple(indices), rows)

    @cached_property
    def others(self) -> list[str]:
        """Tensors that this reading of the adapter has no use for."""
        parts = {_A, _B, _EMBEDDING_A, _EMBEDDING_B, _MAGNITUDE}
        used = {f"{_PREFIX}{w.removesuffix('.weight')}{part}" for w in self.pairs for part in parts}
        used |= {f"{_PREFIX}{weight.removesuffix('.weight')}{_TOKENS}" for weight in self.tokens}
        replaced = {name for name in self.tensors if name.endswith((".weight", ".bias"))}
        used |= {name for name in replaced if ".lora_" not in name or self.is_duplicate(name)}
        return sorted(self.tensors.keys() - used)

    def streams(self, tied: bool) -> bool:
        """Whether rows can be merged one by one, on a base whose output layer is `tied` or not.

        DoRA on an embedding needs the norm of whole columns; rows trained alone in a tied
        embedding would have to reach an output layer with a delta of its own.
        """
        columns = any(pair.transposed and pair.magnitude for pair in self.pairs.values())
        shared = tied and bool(self.tokens) and bool({EMBEDDING, OUTPUT} & self.pairs.keys())
        return not (columns or shared or needs_peft(self.config))

    def scale(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) with use_rslora; patterns as peft reads them."""
        rank = self.rank(module)
        alpha = self._pattern("alpha_pattern", module, self.config.get("lora_alpha", DEFAULT_ALPHA))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def rank(self, module: str) -> int:
        """What adapter_config.json says."""
        return self._pattern("rank_pattern", module, self.config.get("r", DEFAULT_RANK))

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
        ranks = self.tensors[name + a].shape[0], self.tensors[name + b].shape[-1]
        if set(ranks) != {self.rank(module)}:
            raise InputError(
                f"{self.folder}: {module} has rank {' and '.join(map(str, sorted(set(ranks))))}",
                f"{ADAPTER_CONFIG} says {self.rank(module)}, and the scale depends on it",
                "copy both files of the adapter again, from one and the same run",
            )
        return Pair(
            self.tensors[name + a],
            self.tensors[name + b],
            self.scale(module),
            transposed,
            magnitude,
        )

    def require_effect(self, base: Checkpoint) -> None:
        """InputError for an adapter that leaves every weight of `base` as it is."""
        if any(pair.acts for pair in self.pairs.values()) or needs_peft(self.config):
            return
        if self.tokens or any(_differs(base, name, info) for name, info in self.replaced.items()):
            return
        raise self.without_effect("every B or A in it is zero, and it brings no other weights")

    def without_effect(self, why: str) -> InputError:
        return InputError(
            f"{self.folder}: this adapter changes nothing",
            why,
            "train it again, longer or with a higher learning rate; a stopped run: --resume",
        )

    def require_base(self, base: Checkpoint) -> None:
        """InputError, naming both, unless all that streams fits the weights of `base`, and those
        are the weights it was trained on, where that is known.
        """
        require_after_trim(self, base)
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
        require_origin(self.folder, self.base, base)

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


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"{folder}: no LoRA weights here",
            f"{ADAPTER_WEIGHTS} is missing (pickled .bin weights are not read)",
            "run train_lora.py to the end, or copy the file again",
        )
    tensors = read_header(folder / ADAPTER_WEIGHTS)
    if not tensors:
        raise InputError(
            f"{folder}: {ADAPTER_WEIGHTS} holds no tensor",
            "the adapter would change nothing",
            "save it again where it was trained",
        )
    for name, info in tensors.items():
        if 0 in info.shape:
            raise InputError(
                f"{folder}: {name} is empty, of shape {info.shape}",
                "its parts lay on several GPUs (DeepSpeed ZeRO-3, FSDP) and were not gathered",
                "save it again there, within deepspeed.zero.GatheredParameters, or with "
                "zero_to_fp32.py",
            )
        if not name.startswith(_PREFIX):
            raise InputError(
                f"{folder}: {name} does not begin with {_PREFIX}",
                "peft finds no place for such a tensor, and goes on without it",
                f"put {_PREFIX} before the tensors' names, as peft's save_pretrained does",
            )
    return tensors


def _differs(base: Checkpoint, name: str, info: TensorInfo) -> bool:
    stored = base.tensors.get(name, base.tensors.get(EMBEDDING))
    if stored is None or (stored.shape, stored.kind) != (info.shape, info.kind):
        return True
    return not np.array_equal(read_bytes(stored), read_bytes(info))
