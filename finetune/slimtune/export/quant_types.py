"""Which type each tensor of a GGUF gets: llama.cpp's mixtures and fallbacks (src/llama-quant.cpp).

A type encodes blocks of 32 (Q4_0 … Q8_0) or 256 (K-quants) values of a row; a row that is no
multiple falls back to a type with a smaller block, and to F16 where even 32 does not divide it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from slimtune.console import SettingsError


@dataclass(frozen=True)
class Quantization:
    """What a name that users know means: `default` is the type of an ordinary matrix."""

    file_type: LlamaFileType
    default: Type
    mixed: bool = False  # attn_v and ffn_down get Q6_K in some layers


QUANTIZATIONS = {
    "F32": Quantization(LlamaFileType.ALL_F32, Type.F32),
    "F16": Quantization(LlamaFileType.MOSTLY_F16, Type.F16),
    "BF16": Quantization(LlamaFileType.MOSTLY_BF16, Type.BF16),
    "Q8_0": Quantization(LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "Q4_0": Quantization(LlamaFileType.MOSTLY_Q4_0, Type.Q4_0),
    "Q4_K_M": Quantization(LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K, mixed=True),
    "Q5_K_M": Quantization(LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K, mixed=True),
}
PLAIN = (Type.F32, Type.F16, Type.BF16)
K_QUANTS = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
_FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


@dataclass(frozen=True)
class Choice:
    """The type of one tensor, and whether it is not the one that the mixture asks for."""

    type: Type
    fallback: bool = False


def quantization(name: str) -> Quantization:
    if name not in QUANTIZATIONS:
        raise SettingsError(
            f"quantization {name}: unknown type",
            "the layout of a GGUF must be one that llama.cpp can read",
            f"choose one of {', '.join(QUANTIZATIONS)}",
        )
    return QUANTIZATIONS[name]


def choose_types(
    shapes: dict[str, tuple[int, ...]], name: str, *, seventy_billion: bool, k_quants: bool = True
) -> dict[str, Choice]:
    """GGUF tensor name -> its type; `shapes` in file order, as (rows, columns).

    `seventy_billion`: llama.cpp gives attn_v of Llama-2-70B (8 KV heads shared by 64) one size
    more. `k_quants=False` does without ggml's library: Q4_0's output matrix is then Q8_0 instead of
    Q6_K.
    """
    kind = quantization(name)
    values = [tensor for tensor in shapes if "attn_v.weight" in tensor]
    downs = [tensor for tensor in shapes if "ffn_down.weight" in tensor]
    larger = {*_more_bits(values), *_more_bits(downs)} if kind.mixed else set()
    output = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    choices = {}
    for tensor, shape in shapes.items():
        if len(shape) < 2 or tensor.endswith("_norm.weight"):
            choices[tensor] = Choice(Type.F32)
            continue
        wanted = kind.default
        if tensor == output and wanted not in PLAIN:
            choices[tensor] = _output_choice(wanted, shape[-1], k_quants)
            continue
        if tensor in larger:
            wanted = Type.Q6_K
        elif tensor in values and seventy_billion and wanted == Type.Q4_K:
            wanted = Type.Q5_K
        choices[tensor] = _fitting(wanted, shape[-1])
    return choices


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
