"""A model's sizes, and all that follows from them and its family: tensors, parameters, names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slimtune.models.family import (
    BIAS_KEYS,
    EMBEDDING_PART,
    LINEARS,
    LLAMA,
    NORM_PART,
    OUTPUT_PART,
    PARTS,
    Family,
    PartAxes,
    family_of,
    part_of,
    place,
)


@dataclass(frozen=True)
class ModelShape:
    """The sizes in a config.json, and what follows from them and the family."""

    vocabulary: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    bias: frozenset[str]
    family: Family = LLAMA

    @classmethod
    def of(cls, config: dict) -> "ModelShape":
        """The sizes of a config.json; KeyError for one that it lacks."""
        heads, family = config["num_attention_heads"], family_of(config)
        bias = set(family.biases)
        for key in family.bias_keys:
            if config.get(key):
                bias.update(BIAS_KEYS[key])
        return cls(
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            ffn=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or family.head_dim or config["hidden_size"] // heads,
            tied=bool(config.get("tie_word_embeddings")),
            bias=frozenset(bias),
            family=family,
        )

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def sizes(self) -> dict[str, int]:
        """Axis -> how much lies along it."""
        return {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "query": self.heads * self.head_dim,
            "kv": self.kv_width,
            "head": self.head_dim,
            "vocabulary": self.vocabulary,
        }

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: name -> (out, in)."""
        return {name: self._size(PARTS[name]) for name in LINEARS}

    @property
    def linear_parameters(self) -> int:
        """layers * sum(out * in): what 4-bit loading shrinks."""
        return self.layers * sum(out * into for out, into in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        """Every number of one decoder layer."""
        return sum(math.prod(size) for size in self._layer().values())

    @property
    def parameters(self) -> int:
        """Every number that is stored: a layer's, times layers, and those outside of all layers."""
        outside = sum(math.prod(self._size(part)) for part in self._outside())
        return self.layers * self.layer_parameters + outside

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a model of this shape: Hugging Face name -> size."""
        found = {f"{part.path}.weight": self._size(part) for part in self._outside()}
        one = self._layer()
        for layer in range(self.layers):
            for name, size in one.items():
                found[f"model.layers.{layer}.{name}"] = size
        return found

    def adapter_parameters(self, rank: int, target_modules: Sequence[str]) -> int:
        """layers * sum over targets of rank * (in + out)."""
        chosen = self.linears if "all-linear" in target_modules else target_modules
        sizes = [sum(self.linears[name]) for name in chosen if name in self.linears]
        return self.layers * rank * sum(sizes)

    def _size(self, part: PartAxes) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in part.axes)

    def _outside(self) -> list[PartAxes]:
        parts = [EMBEDDING_PART, NORM_PART]
        return parts if self.tied else [*parts, OUTPUT_PART]

    def _layer(self) -> dict[str, tuple[int, ...]]:
        """The tensors of one layer, named within it: weights in the table's order, then biases."""
        weights = [name for name in PARTS if name in LINEARS or name in self.family.norms]
        found = {f"{PARTS[name].path}.weight": self._size(PARTS[name]) for name in weights}
        for name in LINEARS:
            if name in self.bias:
                found[f"{PARTS[name].path}.bias"] = self._size(PARTS[name])[:1]
        return found


def gguf_tensor_name(shape: ModelShape, name: str) -> str | None:
    """llama.cpp's name of a Hugging Face tensor, None for one that this model does not have."""
    layer, _ = place(name)
    part, kind = part_of(name)
    if part is None or (layer is not None and layer >= shape.layers):
        return None
    if part.path in _NORM_PATHS and part.path not in _paths(shape.family.norms):
        return None
    return f"{part.gguf}.{kind}" if layer is None else f"blk.{layer}.{part.gguf}.{kind}"


def _paths(names: Sequence[str]) -> set[str]:
    return {PARTS[name].path for name in names}


_NORM_PATHS = _paths([name for name in PARTS if name not in LINEARS])
