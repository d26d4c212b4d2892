"""Train, validation or test by a hash of what is asked: adding rows never moves the old ones.

Each row has a position in [0, 1), the first 53 bits of sha256(seed, key) / 2^53, where the key is
its question or its group. Training takes the positions from 0 on, the test those up to 1,
validation what lies between. Equal keys fall together, whatever other rows there are. Few rows
give the test more than their share: of 10 answers, 4 more or fewer right are chance.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from slimtune.config.data import Data

TRAIN, VALIDATION, TEST = 0, 1, 2  # places in account.SPLITS
FLOOR = 30  # rows that a share gives the test at least, where there are
FLOOR_FROM = 150  # rows of which that is a fifth: fewer need them for training
_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_FLOOR_AT_MOST = 3  # the floor takes no more than this part: few groups can be large ones


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
    between them then push the farthest ones towards training, never the other way. So does the
    floor of the test, until its share gives as many.
    """
    from_test = _bound(positions, 1.0, wanted.test, wanted.test_rows)
    if test_by_share(positions, wanted) is not None:
        from_test = _bound(positions, 1.0, 0, FLOOR)
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


def chance(rows: int) -> float:
    """z / (2 √(n + z²)) · 100: points by which half of n answers right may be so by chance.

    Half of Wilson's 95 % interval (1927) at 50 %, where it is widest: ±26 of 10 rows, ±17 of 30,
    ±10 of 100.
    """
    return 100 * _Z / (2 * math.sqrt(rows + _Z**2))


def test_by_share(positions: np.ndarray, wanted: Shares) -> int | None:
    """What the share gives the test where that is below the floor, and the floor is to be had."""
    if wanted.test_rows or not wanted.test or len(positions) < FLOOR_FROM:
        return None
    by_share = int((positions >= 1.0 - wanted.test).sum())
    raised = int((positions >= _bound(positions, 1.0, 0, FLOOR)).sum())
    return by_share if by_share < FLOOR and raised * _FLOOR_AT_MOST <= len(positions) else None
