"""Rows that say nearly the same: J(A, B) = |A & B| / |A | B| of their sets of shingles.

A shingle is any 5 characters in a row of the normalised text. A row keeps the low byte of each of
128 min-hashes: two rows agree in one with probability J + (1 - J) / 256, so that

    J ~ (m / 128 - 1 / 256) / (1 - 1 / 256)    for m bytes in common, a standard error below 0.045

Only rows that agree in all r bytes of some band are compared; of pairs with similarity J that is
a share of 1 - (1 - J^r)^b, with b = 128 // r bands. r is the largest that leaves 99 % at the
threshold: at 0.8, 21 bands of 6. Source: Broder, "On the resemblance and containment of
documents", 1997; one byte of each hash: Li and König, "b-Bit Minwise Hashing", 2010.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from rensa import RMinHash

SIZE = 128  # bytes a row, and hashes
_SHINGLE = 5
_SEED = 42  # not the split's: another split judges the same rows alike
_FOUND = 0.99
_MOST_COMPARED = 64  # earlier rows of a band that a row is compared with; patterned rows have more
_AT_ONCE = 1 << 16  # rows compared: 8 MB of each side
_PRIME = np.uint64(0x100000001B3)  # FNV-1a


def signature(texts: Iterable[bytes]) -> bytes:
    """The 128 bytes of normalised texts (see `text.skeleton`), taken as one.

    A row at a time: the library's batches start threads, which no process may fork beside.
    """
    text = b"\n".join(texts).decode("utf-8", "surrogatepass")
    shingles = {text[at : at + _SHINGLE] for at in range(max(len(text) - _SHINGLE + 1, 1))}
    hashes = RMinHash(num_perm=SIZE, seed=_SEED)
    hashes.update(sorted(shingles))
    return np.array(hashes.digest(), np.uint32).astype(np.uint8).tobytes()


def estimate(signatures: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The similarity of pairs of rows, given by their places in the [rows, 128] signatures."""
    common = np.empty(len(ours), np.float32)
    for at in range(0, len(ours), _AT_ONCE):
        pairs = slice(at, at + _AT_ONCE)
        common[pairs] = (signatures[ours[pairs]] == signatures[theirs[pairs]]).sum(axis=1)
    return np.maximum((common / SIZE - 1 / 256) / (1 - 1 / 256), 0)


def width(threshold: float) -> int:
    """Bytes in a band: the most with which 99 % of the pairs at the threshold are compared."""
    widths = range(SIZE, 0, -1)
    return next((r for r in widths if 1 - (1 - threshold**r) ** (SIZE // r) >= _FOUND), 1)


def bands(signatures: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """One key of 64 bits a row, band by band."""
    columns = width(threshold)
    for start in range(0, SIZE - columns + 1, columns):
        keys = np.full(len(signatures), 0xCBF29CE484222325, np.uint64)
        for column in range(start, start + columns):
            keys = (keys ^ signatures[:, column]) * _PRIME
        yield keys


def compare(keys: np.ndarray, settle: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Call `settle(later, earlier)` on places with equal keys; true where `later` is done with.

    In each group the first row meets all others, the first of those left meets the rest, and so
    on, at most 64 times.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    for _ in range(_MOST_COMPARED):
        starts = np.ones(len(ordered), bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        leads = np.maximum.accumulate(np.where(starts, np.arange(len(ordered)), 0))
        later, first = order[~starts], order[leads[~starts]]
        if not len(later):
            return
        rest = ~settle(later, first)
        order, ordered = later[rest], ordered[~starts][rest]
