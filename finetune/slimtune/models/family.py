"""The anatomy of a Llama, written once: its parts, and in what a family differs from it.

`PARTS` says of every part of a decoder layer where it stands, what lies along its dimensions and
what llama.cpp calls it; `FAMILIES` has one entry a family. Parameter counts, memory estimates,
pruning axes, expected tensors, GGUF shapes (`model_shape.py`) and every text that lists families
follow from them: a family that differs only in biases or norms is one more entry.
"""

import re
from dataclasses import dataclass
from typing import Literal

Axis = Literal["hidden", "ffn", "query", "kv", "head", "vocabulary"]
Rotary = Literal["interleaved", "half"]

_NAME = re.compile(r"model\.layers\.(?P<index>\d{1,9})\.(?P<part>.+)")
IGNORED_BUFFER = "rotary_emb.inv_freq"  # old Llama files carry it; nothing reads it


@dataclass(frozen=True)
class PartAxes:
    """One matrix or norm: its place in the model, its axes (out, in), llama.cpp's name.

    `readers` are the matrices that read a norm's output, for a norm of the residual stream.
    """

    path: str
    axes: tuple[Axis, ...]
    gguf: str
    readers: tuple[str, ...] = ()


# The parts of a decoder layer in llama.cpp's order. Norms that only some families have are here,
# too: a family names its own.
PARTS = {
    "input_layernorm": PartAxes(
        "input_layernorm", ("hidden",), "attn_norm", ("q_proj", "k_proj", "v_proj")
    ),
    "q_proj": PartAxes("self_attn.q_proj", ("query", "hidden"), "attn_q"),
    "k_proj": PartAxes("self_attn.k_proj", ("kv", "hidden"), "attn_k"),
    "v_proj": PartAxes("self_attn.v_proj", ("kv", "hidden"), "attn_v"),
    "o_proj": PartAxes("self_attn.o_proj", ("hidden", "query"), "attn_output"),
    "q_norm": PartAxes("self_attn.q_norm", ("head",), "attn_q_norm"),
    "k_norm": PartAxes("self_attn.k_norm", ("head",), "attn_k_norm"),
    "post_attention_layernorm": PartAxes(
        "post_attention_layernorm", ("hidden",), "ffn_norm", ("gate_proj", "up_proj")
    ),
    "gate_proj": PartAxes("mlp.gate_proj", ("ffn", "hidden"), "ffn_gate"),
    "up_proj": PartAxes("mlp.up_proj", ("ffn", "hidden"), "ffn_up"),
    "down_proj": PartAxes("mlp.down_proj", ("hidden", "ffn"), "ffn_down"),
}
EMBEDDING_PART = PartAxes("model.embed_tokens", ("vocabulary", "hidden"), "token_embd")
NORM_PART = PartAxes("model.norm", ("hidden",), "output_norm")
OUTPUT_PART = PartAxes("lm_head", ("vocabulary", "hidden"), "output")
_OUTSIDE = {part.path: part for part in (EMBEDDING_PART, NORM_PART, OUTPUT_PART)}
_BY_PATH = {part.path: part for part in PARTS.values()}

LINEARS = tuple(name for name, part in PARTS.items() if len(part.axes) == 2)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# What a true key of config.json gives a bias, in the families that read the key.
BIAS_KEYS = {"attention_bias": ATTENTION, "mlp_bias": ("gate_proj", "up_proj", "down_proj")}


@dataclass(frozen=True)
class Family:
    """In what a family differs: `model_type` and class of transformers, llama.cpp's name, ...

    biases: the parts that have one whatever config.json says.
    bias_keys: the keys of config.json by which its class gives biases to more of them.
    norms: the parts of a layer that are norms.
    head_dim: a head's size where config.json names none; None: hidden size / heads.
    rotary: which values of a head llama.cpp turns together, neighbours 2i and 2i+1 (interleaved)
        or i and i + d/2 as transformers does (half).
    gguf_sizes: whether llama.cpp's converter always writes a head's size and the vocabulary's; for
        the others it leaves the latter out, and the former where config.json has no head_dim.
    gguf_biases: the parts whose bias llama.cpp's graph reads.
    gguf_factors: whether its graph reads divisors of the frequencies (Llama-3's position scaling).
    undivided: the family under which a model is saved whose heads do not divide its hidden size,
        where the family's own class of transformers refuses such heads.
    gguf_undivided: the family as which llama.cpp reads a model whose heads together are not as wide
        as its hidden size, where its graph of this family wants them to be.
    """

    title: str
    model_type: str
    model_class: str
    gguf: str
    rotary: Rotary
    gguf_sizes: bool
    gguf_biases: tuple[str, ...]
    gguf_factors: bool
    biases: tuple[str, ...] = ()
    bias_keys: tuple[str, ...] = ()
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_dim: int | None = None
    undivided: str | None = None
    gguf_undivided: str | None = None


_QKV = ("q_proj", "k_proj", "v_proj")
# By llama.cpp's name: its graph (src/models), its converter's keys (conversion), both of 2026.
_AS_LLAMA = {
    "gguf": "llama",
    "rotary": "interleaved",
    "gguf_sizes": True,
    "gguf_biases": LINEARS,
    "gguf_factors": True,
}
_AS_QWEN = {
    "rotary": "half",
    "gguf_sizes": False,
    "gguf_biases": _QKV,
    "gguf_factors": False,
}
LLAMA = Family(
    "Llama",
    "llama",
    "LlamaForCausalLM",
    **_AS_LLAMA,
    bias_keys=("attention_bias", "mlp_bias"),
    undivided="mistral",
)
_MISTRAL = Family("Mistral", "mistral", "MistralForCausalLM", **_AS_LLAMA)
_QWEN2 = Family(
    "Qwen2",
    "qwen2",
    "Qwen2ForCausalLM",
    "qwen2",
    **_AS_QWEN,
    biases=_QKV,
    gguf_undivided="llama",
)
_QWEN3 = Family(
    "Qwen3",
    "qwen3",
    "Qwen3ForCausalLM",
    "qwen3",
    **_AS_QWEN,
    bias_keys=("attention_bias",),
    norms=("input_layernorm", "q_norm", "k_norm", "post_attention_layernorm"),
    head_dim=128,
)
FAMILIES = {family.model_type: family for family in (LLAMA, _MISTRAL, _QWEN2, _QWEN3)}


def families_in_words(joined: Literal["and", "or"] = "and") -> str:
    """`Llama, Mistral and Qwen2`."""
    *first, last = [family.title for family in FAMILIES.values()]
    return f"{', '.join(first)} {joined} {last}"


def family_of(config: dict) -> Family:
    """The family of a config.json; of an unknown one, Llama: its sizes are the best guess."""
    return FAMILIES.get(config.get("model_type"), LLAMA)


def linear(layer: int, part: str) -> str:
    """Name of a weight: `linear(3, "up_proj")`."""
    return f"model.layers.{layer}.{PARTS[part].path}.weight"


def place(name: str) -> tuple[int | None, str]:
    """(layer, rest of the name); (None, name) for what belongs to no layer."""
    match = _NAME.fullmatch(name)
    return (int(match["index"]), match["part"]) if match else (None, name)


def part_of(name: str) -> tuple[PartAxes | None, str]:
    """(the part that a tensor belongs to, weight or bias); (None, ...) for an unknown one."""
    layer, rest = place(name)
    path, _, kind = rest.rpartition(".")
    if kind not in ("weight", "bias"):
        return None, kind
    return (_OUTSIDE if layer is None else _BY_PATH).get(path), kind


def axes_of(name: str) -> tuple[Axis, ...] | None:
    """What lies along a tensor's dimensions, (hidden, ffn) of down_proj.weight; None if unknown."""
    part, kind = part_of(name)
    if part is None:
        return None
    return part.axes[:1] if kind == "bias" else part.axes
