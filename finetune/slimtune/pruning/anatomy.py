"""What a cut keeps of a checkpoint, and how it changes each tensor.

Five axes can be cut: layers, hidden channels, FFN neurons, KV groups (a key/value head with the
query heads that read it), and the tokens of the vocabulary. All layers keep the same sizes, so the
result is an ordinary checkpoint. What lies along which dimension of a tensor is in `models.family`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from slimtune.errors import InputError
from slimtune.models.family import FAMILIES, IGNORED_BUFFER, families_in_words
from slimtune.models.model_shape import ModelShape
from slimtune.models.weights import OUTPUT, Checkpoint


@dataclass(frozen=True)
class Keep:
    """What stays, as ascending indices; None: all of that axis. `ffn` and `kv` go by old layer."""

    layers: Sequence[int]
    hidden: torch.Tensor | None = None
    ffn: dict[int, torch.Tensor] = field(default_factory=dict)
    groups: dict[int, torch.Tensor] = field(default_factory=dict)
    vocabulary: torch.Tensor | None = None


def kept_along(
    axis: str | None, layer: int | None, keep: Keep, shape: ModelShape
) -> torch.Tensor | None:
    """The indices that stay along one axis of a tensor of `layer`; None where all do."""
    if axis == "hidden":
        return keep.hidden
    if axis == "vocabulary":
        return keep.vocabulary
    if axis == "ffn":
        return keep.ffn.get(layer)
    groups = keep.groups.get(layer) if axis in ("query", "kv") else None
    if groups is None:
        return None
    width = shape.head_dim * (shape.heads // shape.kv_heads if axis == "query" else 1)
    return channels(groups, width)


def channels(groups: torch.Tensor, width: int) -> torch.Tensor:
    """Indices of all channels of `groups`, each `width` channels wide."""
    return (groups[:, None] * width + torch.arange(width)).reshape(-1)


def prunable_shape(checkpoint: Checkpoint) -> ModelShape:
    """The sizes of a model that can be cut; InputError unless every tensor is where it should be.

    A known family with one size in all layers: gated FFN, grouped heads, biases or none.
    """
    checkpoint.require_full_precision("prune")
    kind = checkpoint.config.get("model_type")
    if kind not in FAMILIES:
        raise _strange(checkpoint, f"its model_type is {kind!r}")
    shape = ModelShape.of(checkpoint.config)
    expected = shape.tensors
    found = {name for name in checkpoint.tensors if not name.endswith(IGNORED_BUFFER)}
    if OUTPUT in found and OUTPUT not in expected:  # a tied model may store its output twice
        expected[OUTPUT] = (shape.vocabulary, shape.hidden)
    if expected.keys() != found:
        odd = sorted(expected.keys() ^ found)[0]
        raise _strange(checkpoint, f"{odd} is {'missing' if odd in expected else 'unexpected'}")
    for name, wanted in expected.items():
        actual = checkpoint.tensors[name].shape
        if actual != wanted:
            raise _strange(checkpoint, f"{name} is {actual}, its config.json says {wanted}")
    return shape


def _strange(checkpoint: Checkpoint, found: str) -> InputError:
    return InputError(
        f"{checkpoint.folder}: not a model that can be pruned",
        found,
        f"prune a {families_in_words('or')} model with the same sizes in all layers",
    )
