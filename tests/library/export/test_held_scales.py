"""Codes that follow their values under scales that stay: ggml's own bytes, changed in place."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from slimtune.export import feedback
from slimtune.export.ggml import find_encoder
from slimtune.export.held_scales import HeldScales
from slimtune.export.quant_types import CANDIDATES, PLAIN

QUANTISED = [kind for kind in (*CANDIDATES, Type.Q4_1, Type.Q5_1) if kind not in PLAIN]
SHAPE = (8, 256)


def begun(kind: Type) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, targets) of a matrix whose columns make up for each other."""
    dice = np.random.default_rng(0)
    rows = dice.normal(size=SHAPE).astype(np.float32)
    rows[3] = 0  # scales of nothing
    inputs = dice.normal(size=(600, 64)) @ dice.normal(size=(64, 256))
    moments = np.einsum("tpi,tpj->pij", *[inputs.reshape(600, 1, 256)] * 2)
    squares = np.triu(feedback.triangles(moments), 1).astype(np.float32)
    encoder = find_encoder()
    encoder.prepare(kind)
    weights = np.ones(SHAPE[1], np.float32)
    return feedback.encode_with_targets(encoder, rows, kind, squares, weights)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_the_targets_of_an_encoding_are_rounded_to_its_very_bytes(kind):
    encoded, targets = begun(kind)
    held = HeldScales(find_encoder(), encoded, kind, SHAPE)
    decoded = held.moved(targets)
    assert np.array_equal(held.encoded.reshape(-1), encoded)
    assert np.array_equal(decoded, find_encoder().decode(encoded, kind, SHAPE))


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_what_moved_is_decoded_as_ggml_decodes_its_bytes_and_comes_back(kind):
    encoded, targets = begun(kind)
    held = HeldScales(find_encoder(), encoded, kind, SHAPE)
    dice = np.random.default_rng(1)
    there = held.moved(targets + dice.normal(size=SHAPE).astype(np.float32) / 3).copy()
    assert np.array_equal(there, find_encoder().decode(held.encoded, kind, SHAPE))
    assert (there != find_encoder().decode(encoded, kind, SHAPE)).mean() > 0.05
    held.moved(targets)
    assert np.array_equal(held.encoded.reshape(-1), encoded)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_no_code_is_nearer(kind):
    """Against every code of the grid, decoded by ggml."""
    encoded, targets = begun(kind)
    held = HeldScales(find_encoder(), encoded, kind, SHAPE)
    values = targets + np.random.default_rng(2).normal(size=SHAPE).astype(np.float32) / 10
    errors = np.abs(held.moved(values) - values)
    grid, blocks = feedback.grid_of(kind), held.encoded
    ranks = np.zeros((len(blocks), targets.size // len(blocks)), np.uint8)
    for rank in range(len(grid.codes)):
        every = blocks & ~grid.mask | grid.packed(np.full_like(ranks, rank))
        other = np.abs(find_encoder().decode(every, kind, SHAPE) - values)
        assert (errors <= other + 1e-5 * np.abs(values) + 1e-6).all()
