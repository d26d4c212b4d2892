"""The account of a preparation, kept row by row: what came in, and what became of it.

Every row of the input ends in exactly one place, so that at any moment

    rows_in = kept + rejected + duplicates + near_duplicates + leaks + not_drawn + too_long

A kept row is written once, in several pieces where a long conversation was split, or as often as
its file's weight says. At the end
the account is summed up in plain numbers, which the data report tells: counts, and for tokens
percentiles, shares, padding and a histogram.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from slimtune.data.splits import FLOOR, chance
from slimtune.data.turns import Message

SPLITS = ("train", "validation", "test")
# The kinds of rows set aside, and the name under which each is counted.
ROW_KINDS = {
    "rejected": "rejected",
    "duplicate": "duplicates",
    "near_duplicate": "near_duplicates",
    "leak": "leaks",
    "not_drawn": "not_drawn",
    "too_long": "too_long",
}


class RowFit(Protocol):
    """What a tokenizer, a template and a length limit make of one conversation."""

    conversations: Sequence[list[Message]]  # one as a rule; several after a split; none if dropped
    encoded: Sequence[Mapping[str, list[int]]]  # {"input_ids", "labels"} of each of them
    tokens: int  # the length it came with
    how: str  # "whole", "shortened", "split" or "dropped"
    reason: str  # of a dropped one


class Fit(Protocol):
    """What a tokenizer, a template and a length limit make of any row."""

    max_length: int

    def __call__(self, messages: Sequence[Message], place: str = ...) -> RowFit:
        """The row within the limit; `place` says in an error where it is."""

    def shown(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The text that the model sees, as (text, supervised)."""


@dataclass(frozen=True)
class TokenSize:
    """A conversation in tokens, counted under the training template."""

    tokens: int
    supervised: int


@dataclass
class Account:
    """Counts by row; `sources` is one entry a file: name, encoding, format, shape, rows."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[str, Counter] = field(default_factory=lambda: {k: Counter() for k in ROW_KINDS})
    kept: int = 0
    splits: Counter = field(default_factory=Counter)
    languages: Counter = field(default_factory=Counter)
    cleaning: Counter = field(default_factory=Counter)  # {step: rows it changed or noticed}
    unused: dict[str, dict[str, float]] = field(default_factory=dict)  # columns that nothing reads
    test_by_share: int | None = None  # rows that the share gives the test, where it got more
    chinese: Counter = field(default_factory=Counter)  # {"tokens", "characters"} of answers
    leakage: dict[str, Any] = field(default_factory=dict)  # what the test shares with training
    long_rows: Counter = field(default_factory=Counter)  # {"whole" | "shortened" | "split": rows}
    tokens: array = field(default_factory=lambda: array("I"))  # of each conversation written
    supervised: array = field(default_factory=lambda: array("I"))  # of them, the same order
    token_splits: array = field(default_factory=lambda: array("B"))  # its place in SPLITS

    def keep(
        self,
        split: str,
        language: str,
        sizes: Sequence[TokenSize] = (),
        how: str = "",
        copies: int = 1,
    ) -> None:
        """A row that was written to `split`, in as many pieces as it has sizes (1 if none), so
        many times."""
        self.kept += 1
        self.splits[split] += (len(sizes) or 1) * copies
        self.languages[language] += 1
        if how:
            self.long_rows[how] += 1
        for size in (*sizes,) * copies:
            self.tokens.append(size.tokens)
            self.supervised.append(size.supervised)
            self.token_splits.append(SPLITS.index(split))

    def set_aside(self, kind: str, reason: str) -> None:
        """A row that was left out; `kind` is one of ROW_KINDS."""
        self.reasons[kind][reason] += 1

    @property
    def rows_in(self) -> int:
        return self.kept + sum(counts.total() for counts in self.reasons.values())

    def numbers(self) -> dict[str, Any]:
        """All counts as plain values; tokens are summed up by `token_numbers`."""
        few = self.splits["test"]
        return {
            "sources": self.sources,
            "unused_columns": self.unused,
            "rows_in": self.rows_in,
            "kept": self.kept,
            **{name: self.reasons[kind].total() for kind, name in ROW_KINDS.items()},
            "reasons": dict(self.reasons["rejected"].most_common()),
            "splits": {name: self.splits[name] for name in SPLITS},
            **({} if self.test_by_share is None else {"test_by_share": self.test_by_share}),
            **({"test_chance": chance(few)} if 0 < few < FLOOR else {}),
            **({"leakage": self.leakage} if self.leakage else {}),
            "languages": dict(self.languages.most_common()),
            "cleaning": dict(self.cleaning),
            "long_rows": dict(self.long_rows),
        }


BATCH_SIZE = 16  # the one that padding is counted for, unless told otherwise
_BARS = 40
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def report_numbers(account: Account, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Every count of the data report as plain values, with tokens where they were counted.

    `batch_size` is the one that padding is counted for.
    """
    files = ", ".join(source["file"] for source in account.sources)
    shapes = ", ".join(dict.fromkeys(source["shape"] for source in account.sources))
    numbers = {"input": files, "format": shapes, **account.numbers()}
    if account.tokens:
        numbers["tokens"] = token_numbers(account, batch_size)
    return numbers


def token_numbers(account: Account, batch_size: int) -> dict[str, Any]:
    """Lengths of the written conversations under the training template, and what they cost.

    Works on the account's arrays of integers (9 bytes a conversation), never on rows.
    """
    lengths = np.frombuffer(account.tokens, dtype=account.tokens.typecode)
    supervised = np.frombuffer(account.supervised, dtype=account.supervised.typecode)
    places = np.frombuffer(account.token_splits, dtype=account.token_splits.typecode)
    of_split = {name: places == index for index, name in enumerate(SPLITS)}
    return {
        **percentiles(lengths),
        "total": int(lengths.sum(dtype=np.int64)),
        "supervised_share": _share(supervised, lengths),
        "truncated_share": truncated_share(account.long_rows),
        "padding_saved": padding_saved(lengths[of_split["train"]], batch_size),
        "batch_size": batch_size,
        **_chinese(account.chinese),
        "splits": {
            name: {
                "conversations": int(chosen.sum()),
                **percentiles(lengths[chosen]),
                "supervised_share": _share(supervised[chosen], lengths[chosen]),
            }
            for name, chosen in of_split.items()
        },
        "histogram": histogram({name: lengths[chosen] for name, chosen in of_split.items()}),
    }


def _chinese(answers: Mapping[str, int]) -> dict[str, float]:
    """Tokens a character of Chinese answers, where there are any."""
    if not answers.get("characters"):
        return {}
    return {"per_chinese_character": round(answers["tokens"] / answers["characters"], 2)}


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """p of n values: the smallest that at least p * n of them do not exceed; 0 of nothing."""
    ordered = np.sort(np.asarray(lengths))
    places = {name: max(math.ceil(share * len(ordered)) - 1, 0) for name, share in _SHARES.items()}
    return {name: int(ordered[place]) if len(ordered) else 0 for name, place in places.items()}


def padding_saved(lengths: Sequence[int], batch_size: int) -> float:
    """1 - sum(lengths) / sum over batches of (rows in the batch * its longest row).

    The share of positions that padded training would compute for nothing, in batches of
    `batch_size` rows in file order; training here pads nothing. 0 of nothing.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return 0.0
    starts = np.arange(0, len(lengths), batch_size)
    rows = np.diff(np.append(starts, len(lengths)))
    padded = (rows * np.maximum.reduceat(lengths, starts)).sum()
    return round(1 - float(lengths.sum() / padded), 4)


def truncated_share(long_rows: Mapping[str, int]) -> float:
    """Of the rows that were measured and kept, the share that lost some of its prompt."""
    return round(long_rows.get("shortened", 0) / max(sum(long_rows.values()), 1), 4)


def histogram(lengths: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Conversations a bar: `edges` (bars + 1, whole tokens, equally wide) and a list a split."""
    longest = max((int(max(values)) for values in lengths.values() if len(values)), default=0)
    width = longest // _BARS + 1
    edges = np.arange(0, longest + width + 1, width)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in lengths.items()}
    return {"edges": edges.tolist(), **counts}


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    total = int(whole.sum(dtype=np.int64))
    return round(int(part.sum(dtype=np.int64)) / max(total, 1), 4)
