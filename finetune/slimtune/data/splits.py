"""Train, validation or test by a hash of what is asked: adding rows never moves the old ones.

Each row has a position in [0, 1), the first 53 bits of sha256(seed, key) / 2^53, where the key is
its question or its group. Training takes the positions from 0 on, the test those up to 1,
validation what lies between. Equal keys fall together, whatever other rows there are.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from slimtune.config.data import Data

TRAIN, VALIDATION, TEST = 0, 1, 2  # places in account.SPLITS


def position(key: bytes, seed: int) -> float:
    """The place of `key` in [0, 1), another one for another seed."""
    digest = hashlib.sha256(b"%d\n%s" % (seed, key)).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


@dataclass(frozen=True)
class Shares:
    """What validation and test get: shares, or counts where these are not 0."""

    validation: float
    test: float
    validation_rows: int = 0
    test_rows: int = 0


def split_bounds(settings: Data) -> Shares:
    """A split that comes from a file of its own gets nothing of the input."""
    validation, test = not settings.validation_input, not settings.test_input
    return Shares(
        settings.validation_ratio * validation,
        settings.test_ratio * test,
        settings.validation_rows * validation,
        settings.test_rows * test,
    )


def assign(positions: np.ndarray, wanted: Shares) -> np.ndarray:
    """The split (TRAIN, VALIDATION, TEST) of each position.

    A count takes the rows nearest to 1, and all rows of the last question it touches. New rows
    between them then push the farthest ones towards training, never the other way.
    """
    from_test = _bound(positions, 1.0, wanted.test, wanted.test_rows)
    below = positions[positions < from_test]
    from_validation = _bound(below, from_test, wanted.validation, wanted.validation_rows)
    return np.where(
        positions >= from_test, TEST, np.where(positions >= from_validation, VALIDATION, TRAIN)
    ).astype(np.uint8)


def _bound(positions: np.ndarray, end: float, share: float, rows: int) -> float:
    """Where the split that ends at `end` begins."""
    if not rows:
        return end - share
    if rows >= len(positions):
        return 0.0
    return float(np.partition(positions, len(positions) - rows)[len(positions) - rows])
