"""What becomes of each row once all are known: repeated, leaking, or kept for one split.

Works on arrays of numbers, a few dozen bytes a row; the texts stay on disk.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimtune.config.data import Data
from slimtune.data import similarity, splits
from slimtune.data.cleaning import RowColumns
from slimtune.data.mixing import row_copies

# Codes of `Fates.kind`, the place in this tuple; "" is kept, the others are account.KINDS.
FATES = ("", "rejected", "duplicate", "near_duplicate", "leak", "not_drawn")
_KEPT, _REJECTED, DUPLICATE, NEAR_DUPLICATE, LEAK, NOT_DRAWN = range(6)
BY_HASH = 255  # a role: the row's split is not given by its file


@dataclass(frozen=True)
class Judgement:
    """Of each row: its kind, its split, the row that it repeats (itself if it repeats none), and
    how similar the two are where that is less than equal (0 where it is not asked), and how often
    training sees it.

    `test_by_share` are the rows that the share alone would have given the test, where the floor
    gave it more; None where it did not.
    """

    kind: np.ndarray
    split: np.ndarray
    first: np.ndarray
    similarity: np.ndarray
    copies: np.ndarray
    test_by_share: int | None = None


def judge(
    columns: RowColumns, roles: np.ndarray, settings: Data, weights: Sequence[float] = ()
) -> Judgement:
    """The fate of every row: repeated ones first, then those that a file's weight does not draw,
    then the splits, then leaks between them, then what is similar: conversations within a split
    (the first stays), questions between two (a leak).

    `roles` says of each row which split its file was given for, BY_HASH for none; `weights` are
    those of the files.
    """
    usable = np.frombuffer(columns.usable, np.uint8).astype(bool)
    kind = np.where(usable, _KEPT, _REJECTED).astype(np.uint8)
    first = np.arange(len(kind))
    if settings.duplicates != "keep":
        _mark_repeated(kind, first, columns, roles, settings.duplicates)
    exact, files = np.frombuffer(columns.exact, np.uint64), np.frombuffer(columns.file, np.uint16)
    copies = row_copies(exact, files, kind == _KEPT, weights, settings.seed)
    kind[(kind == _KEPT) & (copies == 0)] = NOT_DRAWN
    split = roles.copy()
    hashed = (kind == _KEPT) & (roles == BY_HASH)
    positions = np.frombuffer(columns.position, np.float64)[hashed]
    wanted = splits.split_bounds(settings)
    split[hashed] = splits.assign(positions, wanted)
    if settings.drop_leaks:
        _mark_leaks(kind, split, np.frombuffer(columns.question, np.uint64))
    wide = similarity.repeats_from(settings) or similarity.leaks_from(settings)
    alike = np.zeros(len(kind) if wide else 0, np.float32)
    if wide:
        _mark_similar(kind, first, alike, split, columns, settings)
    return Judgement(kind, split, first, alike, copies, splits.test_by_share(positions, wanted))


def _mark_repeated(
    kind: np.ndarray, first: np.ndarray, columns: RowColumns, roles: np.ndarray, which: str
) -> None:
    """The first of equal rows stays. A row that a given test file repeats is a leak, no repeat."""
    exact = np.frombuffer(columns.exact, np.uint64)
    keys = exact if which == "exact" else np.frombuffer(columns.near, np.uint64)
    among = np.flatnonzero(kind == _KEPT)
    of_role = keys[among] ^ (roles[among].astype(np.uint64) << np.uint64(56))
    first[among] = among[first_equal(of_role)]
    repeated = first != np.arange(len(first))
    same = exact == exact[first]
    kind[repeated & same] = DUPLICATE
    kind[repeated & ~same] = NEAR_DUPLICATE


def first_equal(keys: np.ndarray) -> np.ndarray:
    """For each key the place where it stands first."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.ones(len(keys), bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    del ordered  # these arrays are the largest things in memory: no more of them than needed
    of_group = np.where(starts, np.arange(len(keys)), 0)
    np.maximum.accumulate(of_group, out=of_group)
    places = np.empty(len(keys), np.int64)
    places[order] = order[of_group]
    return places


def _mark_leaks(kind: np.ndarray, split: np.ndarray, question: np.ndarray) -> None:
    """Test is the most precious split, then validation: the other one loses its row."""
    for less, more in (
        (splits.VALIDATION, (splits.TEST,)),
        (splits.TRAIN, (splits.TEST, splits.VALIDATION)),
    ):
        kept = kind == _KEPT
        guarded = question[kept & np.isin(split, more)]
        kind[kept & (split == less) & np.isin(question, guarded)] = LEAK


def _mark_similar(
    kind: np.ndarray,
    first: np.ndarray,
    alike: np.ndarray,
    split: np.ndarray,
    columns: RowColumns,
    settings: Data,
) -> None:
    """Within a split whole conversations count: the same question may have two good answers.
    Between two the question does: a test row is known where its question is, however answered.
    """
    marks = (kind, first, alike, split)
    if near := similarity.repeats_from(settings):
        _mark_alike(*marks, columns, columns.signatures, near, NEAR_DUPLICATE)
    if near := similarity.leaks_from(settings):
        _mark_alike(*marks, columns, columns.asked, near, LEAK)


def _mark_alike(
    kind: np.ndarray,
    first: np.ndarray,
    alike: np.ndarray,
    split: np.ndarray,
    columns: RowColumns,
    signatures: array,
    threshold: float,
    mark: int,
) -> None:
    """A row like one set aside in an earlier band goes too: chains of small edits are one text."""
    signatures = np.frombuffer(signatures, np.uint8).reshape(-1, similarity.SIGNATURE_SIZE)
    of_row = np.cumsum(np.frombuffer(columns.usable, np.uint8), dtype=np.int64) - 1
    rows = np.flatnonzero(kind == _KEPT)
    rows = rows[np.argsort(-split[rows].astype(np.int8), kind="stable")]  # the test comes first

    def settle(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
        later, earlier = rows[later], rows[earlier]
        within = split[later] == split[earlier]
        found = similarity.estimate_similarity(signatures, of_row[later], of_row[earlier])
        near = (within == (mark == NEAR_DUPLICATE)) & (found >= threshold)
        gone = later[near]
        kind[gone] = mark
        first[gone], alike[gone] = earlier[near], found[near]
        # Behind a training row come training rows alone, of which none can leak.
        return near | ((mark == LEAK) & (split[earlier] == splits.TRAIN))

    for keys in similarity.bands(signatures, threshold):
        rows = rows[kind[rows] == _KEPT]
        similarity.compare_signatures(keys[of_row[rows]], settle)
