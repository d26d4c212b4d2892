"""float32 rows -> the bytes of a GGUF type: by ggml's own encoder, or by its twins in numpy.

K-quants need the library: the wheel xllamacpp brings it on Linux and macOS, and any libggml-base
of llama.cpp is as good (`gguf.ggml_library`). ctypes releases the GIL while it works. numpy
(`gguf.quants`) gives the same bytes for every other type, so that no machine is without Q8_0.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from slimtune.errors import ResourceError
from slimtune.inference.llama_library import shared_object

_log = logging.getLogger(__name__)

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
# name: (result, arguments)
_SIGNATURES = {
    "ggml_quantize_init": (None, [ctypes.c_int]),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [ctypes.c_int, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER],
    ),
    "ggml_fp32_to_fp16_row": (None, [_POINTER, _POINTER, _LONG]),
    "ggml_fp16_to_fp32_row": (None, [_POINTER, _POINTER, _LONG]),
    "ggml_fp32_to_bf16_row": (None, [_POINTER, _POINTER, _LONG]),
}
_SMALLEST_NORMAL_F16 = np.float32(2.0**-14)
_HALVES = {Type.F16: "ggml_fp32_to_fp16_row", Type.BF16: "ggml_fp32_to_bf16_row"}


class Encoder:
    """ggml's encoder where `library` is given, numpy's otherwise (no K-quants)."""

    def __init__(self, library: ctypes.CDLL | None) -> None:
        self._library = library

    @property
    def k_quants(self) -> bool:
        return self._library is not None

    def prepare(self, kind: Type) -> None:
        """Builds ggml's tables of a type, before threads use it."""
        if self._library is not None:
            self._library.ggml_quantize_init(kind)

    def encode(
        self, rows: np.ndarray, kind: Type, importance: np.ndarray | None = None
    ) -> np.ndarray:
        """(rows, columns) -> contiguous bytes; `importance`: a weight for each column."""
        if kind == Type.F32:
            return np.ascontiguousarray(rows)
        if self._library is None:
            return np.ascontiguousarray(gguf.quants.quantize(rows, kind))
        rows = np.ascontiguousarray(rows, np.float32)
        if kind in _HALVES:
            return self._convert(_HALVES[kind], rows, np.uint16)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        encoded = np.empty(rows.size // block * size, np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._library.ggml_quantize_chunk(
            kind, rows.ctypes.data, encoded.ctypes.data, 0, len(rows), rows.shape[1], weights
        )
        return encoded

    def decode(self, encoded: np.ndarray, kind: Type, shape: tuple[int, int]) -> np.ndarray:
        """What `encode` made of rows of a shape, as float32 again."""
        if kind == Type.F16 and self._library is not None:
            return self._convert("ggml_fp16_to_fp32_row", encoded.reshape(shape), np.float32)
        decoder = getattr(self._library, _decoder(kind), None)
        if decoder is None:
            size = gguf.GGML_QUANT_SIZES[kind][1] * shape[1] // gguf.GGML_QUANT_SIZES[kind][0]
            raw = encoded.view(np.uint8).reshape(shape[0], size)
            return gguf.quants.dequantize(raw, kind).reshape(shape)
        decoder.restype, decoder.argtypes = None, [_POINTER, _POINTER, _LONG]
        values = np.empty(shape, np.float32)
        decoder(encoded.ctypes.data, values.ctypes.data, values.size)
        return values

    def through_f16(self, rows: np.ndarray, bf16: bool = False) -> np.ndarray:
        """float32 values rounded to what F16 holds.

        `bf16`: the values are bfloat16 numbers. Those have fewer digits than F16, so all but the
        smallest are F16 numbers already, and three quarters of the work is spared.
        """
        if not bf16:
            return self._f16_and_back(rows)
        rounded = rows.copy().reshape(-1)
        tiny = np.flatnonzero(np.abs(rounded) < _SMALLEST_NORMAL_F16)
        rounded[tiny] = self._f16_and_back(rounded[tiny])
        return rounded.reshape(rows.shape)

    def _f16_and_back(self, rows: np.ndarray) -> np.ndarray:
        if self._library is None:
            return rows.astype(np.float16).astype(np.float32)
        halves = self._convert("ggml_fp32_to_fp16_row", np.ascontiguousarray(rows), np.uint16)
        return self._convert("ggml_fp16_to_fp32_row", halves, np.float32)

    def _convert(self, function: str, values: np.ndarray, dtype: type) -> np.ndarray:
        converted = np.empty(values.shape, dtype)
        getattr(self._library, function)(values.ctypes.data, converted.ctypes.data, values.size)
        return converted


def _decoder(kind: Type) -> str:
    """ggml's function for rows of a type: dequantize_row_q4_K, dequantize_row_iq4_nl."""
    base, letter = kind.name[:-1].lower(), kind.name[-1]
    return f"dequantize_row_{base}{letter if letter == 'K' else letter.lower()}"


@cache
def find_encoder(library: Path | None = None) -> Encoder:
    """The encoder of `library`, else of xllamacpp, else numpy's.

    Raises ResourceError where a named library cannot be loaded or is not ggml.
    """
    if library is not None:
        return Encoder(_load(library))
    try:
        return Encoder(_load(shared_object()))
    except ResourceError as error:
        _log.debug("encoding with numpy: %s", error.why)
        return Encoder(None)


def _load(file: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(file))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ResourceError(
            f"{file}: not ggml's library",
            str(error).splitlines()[0],
            "name the libggml-base of a llama.cpp build in gguf.ggml_library, or null",
        ) from error
    return loaded
