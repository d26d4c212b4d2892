"""Every block of every type, read by gguf-py's own decoder (Python, not llama.cpp's C), is within
the type's step of the model's own weights.
"""

import gguf
import numpy as np
import pytest
from expected_rows import expected_rows
from gguf import GGMLQuantizationType as Type

from slimtune.export.gguf_writer import write_gguf
from slimtune.export.quant_types import QUANTIZATIONS

# Bits a value, and whether a block has an offset beside its scale: then its range is its own, else
# it lies around zero. Blocks are of 32 values, of 256 in K-quants.
BLOCKS = {
    Type.Q8_0: (8, False), Type.Q6_K: (6, False), Type.Q5_K: (5, True), Type.Q5_1: (5, True),
    Type.Q5_0: (5, False), Type.Q4_K: (4, True), Type.Q4_1: (4, True), Type.Q4_0: (4, False),
}  # fmt: skip
# What rounding to so many bits of mantissa may change, and the smallest number of the type.
FLOATS = {Type.F32: (0, 0), Type.F16: (2**-11, 2**-25), Type.BF16: (2**-8, 0)}


def steps(wanted: np.ndarray, kind: Type) -> np.ndarray:
    """How far each value may be from its own: the block's range / 2^bits."""
    if kind in FLOATS:
        share, least = FLOATS[kind]
        return np.abs(wanted) * share + least
    bits, offset = BLOCKS[kind]
    blocks = wanted.reshape(-1, gguf.GGML_QUANT_SIZES[kind][0])
    if offset:
        ranges = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
    else:
        ranges = 2 * np.abs(blocks).max(1)
    return np.broadcast_to((ranges / 2**bits)[:, None], blocks.shape).reshape(wanted.shape)


@pytest.mark.parametrize("model", ["llama", "narrow"])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_gguf_py_reads_the_models_weights(name, model, request, tmp_path) -> None:
    folder = request.getfixturevalue(model)
    write_gguf(folder, tmp_path / "out.gguf", name)
    kinds = set()
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        wanted = expected_rows(folder, tensor.name)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        # float32 holds neither scale nor sum exactly: a millionth of a step more.
        allowed = steps(wanted, tensor.tensor_type) * 1.000001
        assert (np.abs(found - wanted) <= allowed).all(), (tensor.name, tensor.tensor_type.name)
        kinds.add(tensor.tensor_type)
    assert model == "narrow" or QUANTIZATIONS[name].default in kinds


def test_all_types_that_a_file_can_hold_are_read_here() -> None:
    assert {one.default for one in QUANTIZATIONS.values()} <= {*BLOCKS, *FLOATS}
