"""Rows -> bytes of a GGUF type, each column making up for what rounding did to those before it.

An error d in a row costs d M dᵀ, M the second moments of what enters the matrix. Columns are
rounded in order, and an error of column j moves those after it by −(w_j − q_j) C_j, with M = RRᵀ, R
upper triangular, and C = (R / its diagonal)⁻¹: each column then costs R_jj² (w_j − q_j)², no more
than M_jj, of which `kept` is the share (GPTQ, Frantar et al. 2022; LDLQ, Chee et al. 2023). q_j is
what w_j is rounded to after it was moved.

M is taken in squares along its diagonal, of 256 columns at most: its size then grows with the
model's, and a square's rounding does not wait for another's.

Scales are ggml's own, chosen block by block once all columns before have been made up for; what the
codes of a block stand for is read off its bytes (`grid_of`), so that no type is packed by hand.
"""

from dataclasses import dataclass
from functools import cache

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from slimtune.export.ggml import Encoder

_WIDEST = 256  # columns of a square: a block of the K-quants
# Of the mean of the diagonal, in squares of `_WIDEST`: directions that calibration hardly saw.
_DAMPING = 0.1
_AT_ONCE = 32  # columns whose errors move each other one by one, and those after them together
# Squared errors of values that were moved, of those of the values as they are: scales are chosen
# before a block's columns move each other, and what is moved may lie beyond its ends. Medians over
# the matrices of SmolLM2, stories260K and the sample model, which differ by 0.03 (Q2_K: 0.1).
MOVED = {Type.Q4_0: 1.03, Type.Q5_0: 1.04, Type.Q4_1: 1.07, Type.Q5_1: 1.07, Type.Q8_0: 1.0}
MOVED |= {Type.Q2_K: 1.3, Type.Q3_K: 1.15, Type.Q4_K: 1.18, Type.Q5_K: 1.15, Type.Q6_K: 1.15}
MOVED |= {Type.IQ4_NL: 1.04, Type.IQ4_XS: 1.09}
_SANE = 0x2E  # as F16, as 6 or as 8 bits: a small scale, neither 0 nor infinite


@dataclass(frozen=True)
class Grid:
    """Where the bytes of a block keep the codes of its values, and what the codes stand for.

    `places` (values, bits): the bit of the block, least significant first; `codes` in the order of
    what they stand for; `steps` how far each is from the lowest to the highest, None where they are
    even; `lowest` and `highest` (bytes,): a block with nothing but those codes, `mask` all its
    codes' bits.
    """

    places: np.ndarray
    codes: np.ndarray
    steps: np.ndarray | None
    lowest: np.ndarray
    highest: np.ndarray
    mask: np.ndarray

    def nearest(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rank of the nearest code, its share of the way from the lowest to the highest)."""
        if self.steps is None:
            last = np.float32(len(self.codes) - 1)
            ranks = np.clip(np.rint(shares * last), 0, last)
            return ranks, ranks / last
        ranks = np.searchsorted((self.steps[1:] + self.steps[:-1]) / 2, shares)
        return ranks, self.steps[ranks]

    def packed(self, ranks: np.ndarray) -> np.ndarray:
        """(blocks, values) of ranks -> (blocks, bytes) with the bits of their codes alone."""
        codes = self.codes[ranks]
        found = np.zeros((len(ranks), len(self.mask)), np.uint8)
        for bit, places in enumerate(self.places.T):
            for shift in range(8):  # no byte is met twice in one pass
                chosen = np.flatnonzero(places % 8 == shift)
                bits = (codes[:, chosen] >> bit & 1) << shift
                found[:, places[chosen] // 8] |= bits.astype(np.uint8)
        return found


@cache
def grid_of(kind: Type) -> Grid:
    """Found by flipping each bit of a block: a code's bits change one value, a scale's several."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    block = np.full(size, _SANE, np.uint8)
    found = np.flatnonzero((_flipped(block, kind) != _values(block, kind)).sum(1) == 1)
    mask = _with_bits(np.zeros_like(block), found)
    zeros = block & ~mask
    changes = np.abs(_flipped(zeros, kind)[found] - _values(zeros, kind))
    places = found[np.lexsort((changes.max(1), changes.argmax(1)))].reshape(values, -1)
    bits = places.shape[1]
    blocks = [
        _with_bits(zeros, places[:, [bit for bit in range(bits) if code >> bit & 1]].reshape(-1))
        for code in range(1 << bits)
    ]
    levels = np.array([_values(one, kind)[0] for one in blocks])
    codes = np.argsort(levels)
    steps = (levels[codes] - levels[codes[0]]) / (levels[codes[-1]] - levels[codes[0]])
    even = np.allclose(np.diff(steps), 1 / (len(steps) - 1), rtol=1e-3)
    ends = (blocks[code] & mask for code in (codes[0], codes[-1]))
    return Grid(places, codes, None if even else steps.astype(np.float32), *ends, mask)


def width_of(columns: int) -> int | None:
    """Columns of a square: the most, up to 256, that divide a row and are divided by 32.

    None where nothing but F16 can hold such rows. Rows that take K-quants have squares of 256.
    """
    widths = range(32, _WIDEST + 1, 32)
    return max((width for width in widths if columns % width == 0), default=None)


def damping(width: int) -> float:
    """What is added to the diagonal, of its mean: second moments err by √(width / tokens).

    Half of it makes stories260K, with squares of 64 columns, lose up to 6 % less, and the sample
    model, with squares of 256, up to 15 % more.
    """
    return _DAMPING * (width / _WIDEST) ** 0.5


def triangles(moments: np.ndarray) -> np.ndarray:
    """(squares, width, width) of M -> the same of C above the diagonal, `kept` on it; float64."""
    width = moments.shape[1]
    mean = moments.trace(axis1=1, axis2=2) / width
    damped = moments + damping(width) * np.where(mean > 0, mean, 1)[:, None, None] * np.eye(width)
    upper = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    diagonal = upper.diagonal(axis1=1, axis2=2)
    found = np.triu(np.linalg.inv(upper / diagonal[:, None]))
    place = np.arange(width)
    found[:, place, place] = diagonal**2 / damped.diagonal(axis1=1, axis2=2)
    return found


def times_kept(triangles: np.ndarray, moments: np.ndarray) -> float:
    """What errors cost by the moments of other text, of what `kept` says; 1 where there is none.

    C fits the text that it came from too well, by more or less than the added diagonal assumes: by
    that alone 0.0156 nats were told of SmolLM2, whose rows begin alike, and 0.0110 lost.
    """
    place = np.arange(moments.shape[1])
    kept, making_up = triangles.diagonal(axis1=1, axis2=2), triangles.copy()
    making_up[:, place, place] = 1
    said = (kept * moments.diagonal(axis1=1, axis2=2)).sum()
    return float(((making_up @ moments) * making_up).sum() / said) if said > 0 else 1.0


def packed(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(`kept` (columns,), C above the diagonal (squares, pairs) as F16): what is put on disk."""
    above = np.triu_indices(triangles.shape[1], 1)
    kept = triangles.diagonal(axis1=1, axis2=2).reshape(-1).astype(np.float32)
    return kept, triangles[:, *above].astype(np.float16)


def pairs_of(columns: int) -> int:
    """How many numbers `packed` keeps of a matrix with so many columns."""
    return columns * (width_of(columns) - 1) // 2


def unpacked(pairs: np.ndarray, columns: int) -> np.ndarray:
    """C again, float32 (squares, width, width), nothing on and below the diagonal."""
    width = width_of(columns)
    found = np.zeros((columns // width, width, width), np.float32)
    found[:, *np.triu_indices(width, 1)] = pairs.reshape(len(found), -1)
    return found


def encode(
    encoder: Encoder, rows: np.ndarray, kind: Type, squares: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(rows, columns) -> bytes of `kind`; `squares` (squares, width, width) hold C.

    `weights` (columns,): what an error left in each costs, which ggml chooses scales by.
    """
    return encode_with_targets(encoder, rows, kind, squares, weights)[0]


def encode_with_targets(
    encoder: Encoder, rows: np.ndarray, kind: Type, squares: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(bytes as of `encode`, what each value was to be when it was rounded: (rows, columns)).

    Rounded to the nearest codes of the bytes' scales, the targets give those bytes.
    """
    count, (parts, width, _) = len(rows), squares.shape
    values, size = gguf.GGML_QUANT_SIZES[kind]
    left = np.ascontiguousarray(rows.reshape(count, parts, width).transpose(1, 2, 0))
    weights = weights.reshape(parts, width)
    encoded = np.empty((count, parts, width // values, size), np.uint8)
    for start in range(0, width, values):
        block, after = slice(start, start + values), slice(start + values, width)
        scaled = np.ascontiguousarray(left[:, block].transpose(2, 0, 1)).reshape(count, -1)
        begun = encoder.encode(scaled, kind, np.ascontiguousarray(weights[:, block]))
        begun = begun.view(np.uint8).reshape(-1, size)
        errors, ranks = _rounded(encoder, left[:, block], begun, kind, squares[:, block, block])
        grid = grid_of(kind)
        codes = grid.packed(ranks.transpose(2, 0, 1).reshape(-1, values))
        encoded[:, :, start // values] = (begun & ~grid.mask | codes).reshape(count, parts, size)
        left[:, after] -= squares[:, block, after].transpose(0, 2, 1) @ errors
    targets = np.ascontiguousarray(left.transpose(2, 0, 1)).reshape(rows.shape)
    return encoded.reshape(-1), targets


def _rounded(
    encoder: Encoder, left: np.ndarray, begun: np.ndarray, kind: Type, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(errors, ranks), both (parts, values, rows), of blocks with the scales of `begun`.

    `left` is what the values should be now, and moves with the errors.
    """
    grid, (parts, values, count) = grid_of(kind), left.shape
    lowest, highest = (
        encoder.decode(begun & ~grid.mask | end, kind, (count, parts * values))
        .reshape(count, parts, values)
        .transpose(1, 2, 0)
        for end in (grid.lowest, grid.highest)
    )
    span = np.ascontiguousarray(highest - lowest)
    lowest = np.ascontiguousarray(lowest)
    inverse = np.divide(1, span, out=np.zeros_like(span), where=span != 0)
    errors, ranks = np.empty_like(span), np.empty(span.shape, np.uint8)
    for start in range(0, values, _AT_ONCE):
        stop = start + _AT_ONCE
        for j in range(start, stop):
            shares = (left[:, j] - lowest[:, j]) * inverse[:, j]
            ranks[:, j], shares = grid.nearest(shares)
            errors[:, j] = left[:, j] - lowest[:, j] - span[:, j] * shares
            moves = squares[:, j, j + 1 : stop, None] * errors[:, j, None]
            left[:, j + 1 : stop] -= moves
        moves = squares[:, start:stop, stop:].transpose(0, 2, 1) @ errors[:, start:stop]
        left[:, stop:] -= moves
    return errors, ranks


def _values(blocks: np.ndarray, kind: Type) -> np.ndarray:
    with np.errstate(all="ignore"):  # scales of flipped bits overflow
        return gguf.quants.dequantize(blocks, kind).astype(np.float64)


def _flipped(block: np.ndarray, kind: Type) -> np.ndarray:
    """(bits, values): what the block stands for with each of its bits flipped."""
    bits = np.arange(8 * len(block))
    blocks = np.repeat(block[None], len(bits), 0)
    blocks[bits, bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    return _values(blocks, kind)


def _with_bits(block: np.ndarray, bits: np.ndarray) -> np.ndarray:
    found = block.copy()
    np.bitwise_or.at(found, bits // 8, (1 << bits % 8).astype(np.uint8))
    return found
