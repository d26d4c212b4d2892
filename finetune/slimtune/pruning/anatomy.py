"""What a checkpoint consists of, and how a cut changes each of its tensors.

Four axes can be cut: layers, hidden channels, FFN neurons, and KV groups (a key/value head with the
query heads that read it). All layers keep the same sizes, so the result is an ordinary checkpoint.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from slimtune.console import InputError
from slimtune.models.checkpoints import OUTPUT, Checkpoint
from slimtune.models.memory import ModelShape

FAMILIES = ("llama", "mistral", "qwen2")
_NAME = re.compile(r"(?P<layer>model\.layers\.(?P<index>\d+)\.)(?P<part>.+)")
_OUT = {"gate_proj": "ffn", "up_proj": "ffn", "q_proj": "query", "k_proj": "kv", "v_proj": "kv"}
_IN = {"down_proj": "ffn", "o_proj": "query"}
_IGNORED = "rotary_emb.inv_freq"  # a buffer that old Llama files carry; nothing reads it

Axes = tuple[str | None, ...]  # what lies along each dimension: hidden, ffn, query, kv, or None


@dataclass(frozen=True)
class Keep:
    """What stays, as ascending indices; None: all of that axis. `ffn` and `kv` go by old layer."""

    layers: Sequence[int]
    hidden: torch.Tensor | None = None
    ffn: dict[int, torch.Tensor] = field(default_factory=dict)
    groups: dict[int, torch.Tensor] = field(default_factory=dict)


def linear(layer: int, part: str) -> str:
    """Name of a weight: `linear(3, "up_proj")`."""
    block = "self_attn" if part in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{layer}.{block}.{part}.weight"


def place(name: str) -> tuple[int | None, str]:
    """(layer, rest of the name); (None, name) for what belongs to no layer."""
    match = _NAME.fullmatch(name)
    return (int(match["index"]), match["part"]) if match else (None, name)


def axes_of(name: str) -> Axes:
    """What lies along the dimensions of a tensor: down_proj.weight is (hidden, ffn)."""
    layer, part = place(name)
    if name.endswith(_IGNORED):
        return (None,)
    if layer is None:
        return ("hidden",) if name == "model.norm.weight" else (None, "hidden")
    *_, module, kind = part.split(".")
    out = _OUT.get(module, "hidden")
    return (out, _IN.get(module, "hidden")) if kind == "weight" and "norm" not in module else (out,)


def kept_along(
    axis: str | None, layer: int | None, keep: Keep, shape: ModelShape
) -> torch.Tensor | None:
    """The indices that stay along one axis of a tensor of `layer`; None where all do."""
    if axis == "hidden":
        return keep.hidden
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

    Llama, Mistral and Qwen2 with one size in all layers: gated FFN, grouped heads, biases or none.
    """
    checkpoint.require_full_precision("prune")
    kind = checkpoint.config.get("model_type")
    if kind not in FAMILIES:
        raise _strange(checkpoint, f"its model_type is {kind!r}")
    shape = ModelShape.of(checkpoint.config)
    sizes = {"hidden": shape.hidden, "ffn": shape.ffn, "kv": shape.kv_width}
    sizes["query"] = shape.heads * shape.head_dim
    found = {name for name in checkpoint.tensors if not name.endswith(_IGNORED)}
    expected = set(expected_names(shape)) | ({OUTPUT} & found)
    if expected != found:
        odd = sorted(expected ^ found)[0]
        raise _strange(checkpoint, f"{odd} is {'missing' if odd in expected else 'unexpected'}")
    for name in found:
        wanted = tuple(sizes.get(axis, shape.vocabulary) for axis in axes_of(name))
        if checkpoint.tensors[name].shape != wanted:
            actual = checkpoint.tensors[name].shape
            raise _strange(checkpoint, f"{name} is {actual}, its config.json says {wanted}")
    return shape


def expected_names(shape: ModelShape) -> list[str]:
    """Every tensor of a model of this shape."""
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [] if shape.tied else [OUTPUT]
    for layer in range(shape.layers):
        weights = {part: linear(layer, part) for part in shape.linears}
        names += weights.values()
        names += [weights[part].removesuffix("weight") + "bias" for part in shape.bias]
        norms = ("input_layernorm", "post_attention_layernorm")
        names += [f"model.layers.{layer}.{norm}.weight" for norm in norms]
    return names


def _strange(checkpoint: Checkpoint, found: str) -> InputError:
    return InputError(
        f"{checkpoint.folder}: not a model that can be pruned",
        found,
        "prune a Llama, Mistral or Qwen2 model with the same sizes in all layers",
    )
