"""Which type each tensor of a GGUF gets: llama.cpp's mixtures and fallbacks (src/llama-quant.cpp).

A type encodes blocks of 32 (Q4_0 … Q8_0) or 256 (K-quants) values of a row; a row that is no
multiple falls back to a type with a smaller block, and to F16 where even 32 does not divide it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from slimtune.config.catalogues import bind, facts
from slimtune.errors import SettingsError

Precision = Literal["float32", "bfloat16"]  # of the reference

# The largest rise of the loss, in nats per answer token; the catalogue says how they were measured.
TOLERANCES: dict[str, float] = facts("gguf_types", "tolerance")
EXACT = ("F32", "F16")  # greedy text must be the same, and each answer must end as the model's
TIE = 0.02  # nats between first and second choice that llama.cpp's f16 cache may swap
REFERENCE_IN_BF16 = 0.02  # on top, where memory holds the reference in bfloat16 only


@dataclass(frozen=True)
class QuantType:
    """What a name that users know means: `default` is the type of an ordinary matrix."""

    file_type: LlamaFileType
    default: Type


_MIXTURES = {
    "F32": QuantType(LlamaFileType.ALL_F32, Type.F32),
    "F16": QuantType(LlamaFileType.MOSTLY_F16, Type.F16),
    "BF16": QuantType(LlamaFileType.MOSTLY_BF16, Type.BF16),
    "Q8_0": QuantType(LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "Q4_0": QuantType(LlamaFileType.MOSTLY_Q4_0, Type.Q4_0),
    "Q4_1": QuantType(LlamaFileType.MOSTLY_Q4_1, Type.Q4_1),
    "Q5_0": QuantType(LlamaFileType.MOSTLY_Q5_0, Type.Q5_0),
    "Q5_1": QuantType(LlamaFileType.MOSTLY_Q5_1, Type.Q5_1),
    "Q4_K_S": QuantType(LlamaFileType.MOSTLY_Q4_K_S, Type.Q4_K),
    "Q4_K_M": QuantType(LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K),
    "Q5_K_S": QuantType(LlamaFileType.MOSTLY_Q5_K_S, Type.Q5_K),
    "Q5_K_M": QuantType(LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K),
    "Q6_K": QuantType(LlamaFileType.MOSTLY_Q6_K, Type.Q6_K),
}
QUANTIZATIONS: dict[str, QuantType] = bind("gguf_types", _MIXTURES)
PLAIN = (Type.F32, Type.F16, Type.BF16)
K_QUANTS = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
_FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
# Types that a matrix may get where bytes or loss are given: none needs an importance matrix.
CANDIDATES = (
    Type.Q2_K,
    Type.Q3_K,
    Type.IQ4_XS,
    Type.IQ4_NL,
    Type.Q4_0,
    Type.Q4_K,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_K,
    Type.Q5_1,
    Type.Q6_K,
    Type.Q8_0,
    Type.F16,
)
_BY_NUMPY = (Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)
# What a file is called where the most bytes are of a type: llama.cpp and Ollama show it.
_MOSTLY = {
    Type.F32: LlamaFileType.ALL_F32,
    Type.Q2_K: LlamaFileType.MOSTLY_Q2_K,
    Type.Q3_K: LlamaFileType.MOSTLY_Q3_K_M,
    Type.Q4_K: LlamaFileType.MOSTLY_Q4_K_M,
    Type.Q5_K: LlamaFileType.MOSTLY_Q5_K_M,
}
# The first ffn_down can go astray in these two where an importance matrix is used.
_GUARDED = {"Q4_0": Type.Q4_1, "Q5_0": Type.Q5_1}


@dataclass(frozen=True)
class Choice:
    """The type of one tensor, and whether it is not the one that the mixture asks for."""

    type: Type
    fallback: bool = False


def quantization(name: str) -> QuantType:
    if name not in QUANTIZATIONS:
        raise SettingsError(
            f"quantization {name}: unknown type",
            "the layout of a GGUF must be one that llama.cpp can read",
            f"choose one of {', '.join(QUANTIZATIONS)}",
        )
    return QUANTIZATIONS[name]


def candidates(columns: int, library: bool) -> list[Type]:
    """The types for rows of `columns` values; some need ggml's `library`."""
    return [
        kind
        for kind in CANDIDATES
        if columns % gguf.GGML_QUANT_SIZES[kind][0] == 0 and (library or kind in _BY_NUMPY)
    ]


def mostly(types: Mapping[Type, int]) -> LlamaFileType:
    """The name for a file with so many bytes of each type."""
    most = max(types, key=types.__getitem__)
    return _MOSTLY.get(most) or LlamaFileType[f"MOSTLY_{most.name}"]


def choose_types(
    shapes: dict[str, tuple[int, ...]],
    name: str,
    *,
    seventy_billion: bool = False,
    k_quants: bool = True,
    importance: bool = False,
) -> dict[str, Choice]:
    """GGUF tensor name -> its type; `shapes` in file order, as (rows, columns).

    `seventy_billion`: llama.cpp gives attn_v of Llama-2-70B (8 KV heads shared by 64) one size
    more. `k_quants=False` does without ggml's library: the output matrix of the old types is then
    Q8_0 instead of Q6_K. `importance`: whether an importance matrix will be used.
    """
    default = quantization(name).default
    wanted = _exceptions(name, list(shapes), seventy_billion, importance)
    output = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    choices = {}
    for tensor, shape in shapes.items():
        if len(shape) < 2 or tensor.endswith("_norm.weight"):
            choices[tensor] = Choice(Type.F32)
        elif tensor == output and default not in PLAIN:
            choices[tensor] = _output_choice(default, shape[-1], k_quants)
        else:
            choices[tensor] = _fitting(wanted.get(tensor, default), shape[-1])
    return choices


def _exceptions(
    name: str, tensors: list[str], seventy_billion: bool, importance: bool
) -> dict[str, Type]:
    """Matrices that get more bits than the default, because errors cost most in them."""
    values = [tensor for tensor in tensors if "attn_v.weight" in tensor]
    downs = [tensor for tensor in tensors if "ffn_down.weight" in tensor]
    first_downs = downs[: len(downs) // 8]
    found: dict[str, Type] = {}
    if seventy_billion and QUANTIZATIONS[name].default == Type.Q4_K:
        found |= dict.fromkeys(values, Type.Q5_K)
    if name in ("Q4_K_M", "Q5_K_M"):
        found |= dict.fromkeys([*_more_bits(values), *_more_bits(downs)], Type.Q6_K)
    if name == "Q4_K_S":
        found |= dict.fromkeys([*values[:4], *first_downs], Type.Q5_K)
    if importance and name in _GUARDED:
        found |= dict.fromkeys(first_downs, _GUARDED[name])
    return found


def encoded_bytes(shape: Iterable[int], kind: Type) -> int:
    """Bytes of a tensor in a type: values / block × block bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = 1
    for length in shape:
        values *= length
    return values // block * size


def _more_bits(tensors: list[str]) -> list[str]:
    """The first and last eighth of the layers, and every third between: where errors cost most."""
    count = len(tensors)
    eighth = count // 8
    return [
        tensor
        for i, tensor in enumerate(tensors)
        if i < eighth or i >= 7 * count // 8 or (i - eighth) % 3 == 2
    ]


def _output_choice(default: Type, columns: int, k_quants: bool) -> Choice:
    """The output matrix (or tied embedding): Q6_K, or Q8_0 where rows or library forbid it."""
    ideal = default if default == Type.Q8_0 else Type.Q6_K
    possible = k_quants and columns % gguf.GGML_QUANT_SIZES[default][0] == 0
    chosen = _fitting(ideal if possible else Type.Q8_0, columns).type
    return Choice(chosen, fallback=chosen != ideal)


def _fitting(wanted: Type, columns: int) -> Choice:
    def fits(kind: Type) -> bool:
        return columns % gguf.GGML_QUANT_SIZES[kind][0] == 0

    if fits(wanted):
        return Choice(wanted)
    smaller = _FALLBACK.get(wanted, wanted)
    return Choice(smaller if fits(smaller) else Type.F16, fallback=True)
