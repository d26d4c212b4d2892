"""The account of a preparation, kept row by row: what came in, and what became of it.

Every row of the input ends in exactly one place, so that at any moment

    rows_in = kept + rejected + duplicates + near_duplicates + leaks + too_long

A kept row is written once, or in several pieces where a long conversation was split.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from slimtune.data.turns import Message

SPLITS = ("train", "validation", "test")
# The kinds of rows set aside, and the name under which each is counted.
KINDS = {
    "rejected": "rejected",
    "duplicate": "duplicates",
    "near_duplicate": "near_duplicates",
    "leak": "leaks",
    "too_long": "too_long",
}


class Fitted(Protocol):
    """What a tokenizer, a template and a length limit make of one conversation."""

    conversations: Sequence[list[Message]]  # one as a rule; several after a split; none if dropped
    encoded: Sequence[Mapping[str, list[int]]]  # {"input_ids", "labels"} of each of them
    tokens: int  # the length it came with
    how: str  # "whole", "shortened", "split" or "dropped"
    reason: str  # of a dropped one


Fit = Callable[..., Fitted]  # (messages, place="where the row is, for an error")


@dataclass(frozen=True)
class Size:
    """A conversation in tokens, counted under the training template."""

    tokens: int
    supervised: int


@dataclass
class Account:
    """Counts by row; `sources` is one entry a file: name, encoding, format, shape, rows."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[str, Counter] = field(default_factory=lambda: {k: Counter() for k in KINDS})
    kept: int = 0
    splits: Counter = field(default_factory=Counter)
    languages: Counter = field(default_factory=Counter)
    cleaning: Counter = field(default_factory=Counter)  # {step: rows it changed or noticed}
    long_rows: Counter = field(default_factory=Counter)  # {"whole" | "shortened" | "split": rows}
    tokens: array = field(default_factory=lambda: array("I"))  # of each conversation written
    supervised: array = field(default_factory=lambda: array("I"))  # of them, the same order
    token_splits: array = field(default_factory=lambda: array("B"))  # its place in SPLITS

    def keep(self, split: str, language: str, sizes: Sequence[Size] = (), how: str = "") -> None:
        """A row that was written to `split`, in as many pieces as it has sizes (1 if none)."""
        self.kept += 1
        self.splits[split] += len(sizes) or 1
        self.languages[language] += 1
        if how:
            self.long_rows[how] += 1
        for size in sizes:
            self.tokens.append(size.tokens)
            self.supervised.append(size.supervised)
            self.token_splits.append(SPLITS.index(split))

    def set_aside(self, kind: str, reason: str) -> None:
        """A row that was left out; `kind` is one of KINDS."""
        self.reasons[kind][reason] += 1

    @property
    def rows_in(self) -> int:
        return self.kept + sum(counts.total() for counts in self.reasons.values())

    def numbers(self) -> dict[str, Any]:
        """All counts as plain values; tokens are the report's to sum up."""
        return {
            "sources": self.sources,
            "rows_in": self.rows_in,
            "kept": self.kept,
            **{name: self.reasons[kind].total() for kind, name in KINDS.items()},
            "reasons": dict(self.reasons["rejected"].most_common()),
            "splits": {name: self.splits[name] for name in SPLITS},
            "languages": dict(self.languages.most_common()),
            "cleaning": dict(self.cleaning),
            "long_rows": dict(self.long_rows),
        }
