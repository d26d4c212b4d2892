"""Rounding that later columns make up for: on ggml's grids, against the plain definition."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from slimtune.export import feedback
from slimtune.export.ggml import Encoder, find_encoder
from slimtune.export.quant_types import CANDIDATES, PLAIN

QUANTISED = [kind for kind in CANDIDATES if kind not in PLAIN]
COLUMNS = 512


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """(rows, moments of inputs that depend on each other), in squares of 256 columns."""
    dice = np.random.default_rng(0)
    rows = dice.normal(size=(24, COLUMNS)).astype(np.float32)
    common = dice.normal(size=(2000, 64)) @ dice.normal(size=(64, COLUMNS)) / 8
    inputs = (common + 0.5 * dice.normal(size=(2000, COLUMNS))).reshape(2000, 2, 256)
    return rows, np.einsum("tpi,tpj->pij", inputs, inputs) / 2000


def cost(errors: np.ndarray, moments: np.ndarray) -> float:
    parts = errors.reshape(len(errors), *moments.shape[:2])
    return float(np.einsum("rpi,pij,rpj->", parts, moments, parts))


def kept(triangles: np.ndarray, moments: np.ndarray) -> np.ndarray:
    shares = triangles.diagonal(axis1=1, axis2=2)
    return (shares * moments.diagonal(axis1=1, axis2=2)).reshape(-1).astype(np.float32)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_it_costs_less_and_as_much_as_the_shares_say(world, kind):
    rows, moments = world
    encoder = find_encoder()
    encoder.prepare(kind)
    triangles = feedback.triangles(moments)
    weights = kept(triangles, moments)
    plain = encoder.decode(encoder.encode(rows, kind, weights), kind, rows.shape)
    encoded = feedback.encode(encoder, rows, kind, triangles.astype(np.float32), weights)
    found = encoder.decode(encoded, kind, rows.shape)
    assert cost(found - rows, moments) < 0.75 * cost(plain - rows, moments)
    expected = float(((plain - rows).astype(np.float64) ** 2 @ weights).sum())
    told = expected * feedback.MOVED[kind] * feedback.times_kept(triangles, moments)
    assert cost(found - rows, moments) == pytest.approx(told, rel=0.1)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_with_nothing_to_make_up_for_the_codes_are_the_nearest(world, kind):
    """The bytes are ggml's own but where two codes are as near, or ggml takes the further one."""
    rows, encoder = world[0], find_encoder()
    encoder.prepare(kind)
    weights = np.ones(COLUMNS, np.float32)
    squares = np.tile(np.eye(256, dtype=np.float32), (2, 1, 1))
    encoded = feedback.encode(encoder, rows, kind, squares, weights)
    theirs = encoder.encode(rows, kind, weights)
    ours, plain = (encoder.decode(one, kind, rows.shape) for one in (encoded, theirs))
    assert (encoded == theirs).mean() > 0.9
    assert ((ours - rows) ** 2).sum() <= ((plain - rows) ** 2).sum() * (1 + 1e-6)


def test_each_error_moves_the_columns_after_it_as_least_squares_does():
    """One row, one column rounded: the others become what costs least beside that error."""
    dice = np.random.default_rng(1)
    inputs = dice.normal(size=(500, 32)) @ (np.eye(32) + 0.2 * dice.normal(size=(32, 32)))
    moments = inputs.T @ inputs
    damped = moments + feedback.damping(32) * moments.trace() / 32 * np.eye(32)
    moved = feedback.triangles(moments[None])[0][0, 1:]
    assert moved == pytest.approx(-np.linalg.solve(damped[1:, 1:], damped[1:, 0]), abs=1e-9)


def test_wider_squares_know_less_of_each_direction():
    assert feedback.damping(256) == 2 * feedback.damping(64)


def test_shares_are_what_the_columns_after_cannot_make_up_for():
    moments = np.array([[[2.0, 1.0], [1.0, 1.0]]])
    damped = moments[0] + feedback.damping(2) * 1.5 * np.eye(2)
    shares = feedback.triangles(moments)[0].diagonal()
    assert shares == pytest.approx([np.linalg.det(damped) / damped[1, 1] / damped[0, 0], 1])
    nothing = feedback.triangles(np.zeros((1, 2, 2)))[0]
    assert nothing == pytest.approx(np.eye(2))


@pytest.mark.parametrize("tokens", [60, 20_000], ids=["little text", "much text"])
def test_what_is_told_is_what_other_text_loses(tokens):
    """Of little text a direction is made up by that is no other text's; of much, none."""
    dice = np.random.default_rng(2)
    common = dice.normal(size=(40, 256))

    def read(count: int) -> np.ndarray:
        inputs = dice.normal(size=(count, 40)) @ common / 6 + 0.3 * dice.normal(size=(count, 256))
        return (inputs.T @ inputs / count)[None]

    rows, encoder, kind = dice.normal(size=(64, 256)).astype(np.float32), find_encoder(), Type.Q4_0
    moments, others, true = read(tokens), read(3000), read(100_000)
    triangles = feedback.triangles(moments)
    weights = kept(triangles, true)
    plain = encoder.decode(encoder.encode(rows, kind, weights), kind, rows.shape)
    encoded = feedback.encode(encoder, rows, kind, triangles.astype(np.float32), weights)
    lost = cost(encoder.decode(encoded, kind, rows.shape) - rows, true)
    told = ((plain - rows).astype(np.float64) ** 2 @ weights).sum() * feedback.MOVED[kind]
    assert told * feedback.times_kept(triangles, others) == pytest.approx(lost, rel=0.1)
    assert abs(told / lost - 1) > 0.2  # the added diagonal alone does not know


def test_other_text_says_how_much_more_an_error_costs_there(world):
    _, moments = world
    triangles, others = feedback.triangles(moments), moments[::-1]
    making_up = np.triu(triangles, 1) + np.eye(256)
    cost = np.einsum("pij,pjk,pik->", making_up, others, making_up)
    said = triangles.diagonal(axis1=1, axis2=2) * others.diagonal(axis1=1, axis2=2)
    assert feedback.times_kept(triangles, others) == pytest.approx(cost / said.sum())
    assert feedback.times_kept(triangles, np.zeros_like(others)) == 1  # there is no such text


def test_rows_and_blocks_do_not_touch_each_other(world):
    """Writers hand over a few rows at a time: the bytes are those of all at once."""
    rows, moments = world
    triangles = feedback.triangles(moments).astype(np.float32)
    weights = kept(triangles, moments)
    encode = [
        feedback.encode(find_encoder(), part, Type.Q4_K, triangles, weights)
        for part in (rows, rows[:5], rows[5:])
    ]
    assert (encode[0] == np.concatenate(encode[1:])).mean() > 0.999


@pytest.mark.parametrize(
    ("columns", "width"), [(64, 64), (576, 192), (896, 224), (5632, 256), (768, 256), (172, None)]
)
def test_squares_divide_a_row_and_hold_whole_blocks(columns, width):
    assert feedback.width_of(columns) == width


def test_numpys_encoder_serves_as_well(world):
    rows, moments = world
    triangles = feedback.triangles(moments).astype(np.float32)
    weights = kept(triangles, moments)
    found = feedback.encode(Encoder(None), rows, Type.Q4_0, triangles, weights)
    values = Encoder(None).decode(found, Type.Q4_0, rows.shape)
    plain = Encoder(None).encode(rows, Type.Q4_0)
    plain = Encoder(None).decode(plain, Type.Q4_0, rows.shape)
    assert cost(values - rows, moments) < 0.75 * cost(plain - rows, moments)
