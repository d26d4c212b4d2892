"""The likeliest tokens of every supervised place of a row, as llama.cpp's child process finds them.

    plan = TopChoices(folder, top_k=32, temperature=1.0, tokens=49152)
    losses = engine.losses(examples, plan.known(rows), plan)    # a file a row grows in `folder`
    ids, logs = plan.read(7)                                    # (places, k) each

It is asked for in the same way as `Distributions`, which keeps the whole vocabulary. A file that is
there is whole, so what was stopped goes on with the row after it. Nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtune.artifacts.files import replacing
from slimtune.inference.distributions import Distributions, RowDistributions, RowPlan

_IDS, _LOGS = np.dtype("<i4"), np.dtype("<f2")
CHOICE_BYTES = _IDS.itemsize + _LOGS.itemsize


def top_choices(
    log_probabilities: np.ndarray, tokens: int, top_k: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of ln softmax(ln p / T) among the first `tokens` ids: (ids, values), sorted.

    Logits need not be known for it: they are ln p and a constant, which softmax takes away. Ids
    after `tokens` have no names, they fill up a matrix; their share is nobody's.
    """
    logs = log_probabilities / temperature
    logs -= logs.max()
    logs -= np.log(np.exp(logs).sum())
    top = np.argpartition(logs[:tokens], -top_k)[-top_k:]
    top = top[np.argsort(-logs[top], kind="stable")]
    return top, logs[top]


@dataclass(frozen=True)
class TopChoices:
    """What becomes of the predictions on every row: the `top_k` likeliest of the first `tokens`
    tokens go into a file of `folder`. What is left over of 1 lies with all others.

    `ids` are those of the tokens asked of, where they are not the first ones: each is told by its
    place among them, and all of 1 is theirs.
    """

    folder: Path
    top_k: int
    temperature: float
    tokens: int
    ids: Sequence[int] | None = None

    @property
    def choices(self) -> int:
        return min(self.top_k, self.tokens)

    def row(self, row: int, places: Sequence[int]) -> "TopPlan":
        """That of one row; `places` are its supervised tokens among those that are scored."""
        return TopPlan(self, self._file(row), tuple(places))

    def known(self, rows: Iterable[int]) -> set[int]:
        """The rows that an earlier run has finished."""
        return {row for row in rows if self._file(row).is_file()}

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, log-probabilities) of a row, a line for each of its supervised tokens."""
        found = self._file(row).read_bytes()
        places = len(found) // (self.choices * CHOICE_BYTES)
        ids, logs = np.split(np.frombuffer(found, "u1"), [places * self.choices * _IDS.itemsize])
        shape = (places, self.choices)
        return ids.view(_IDS).reshape(shape), logs.view(_LOGS).reshape(shape)

    def _file(self, row: int) -> Path:
        return self.folder / f"{row}.top"


@dataclass(frozen=True)
class TopPlan:
    """The file of one row, and which of the tokens that are scored are its supervised ones."""

    asked: TopChoices
    file: Path
    places: tuple[int, ...]

    def open(self) -> "RowChoices":
        return RowChoices(self)


class RowChoices:
    """One row being read: of each place's predictions the largest stay."""

    divergences: tuple[float, ...] = ()
    agreements: tuple[bool, ...] = ()

    def __init__(self, plan: TopPlan) -> None:
        self.plan = plan
        self._asked = slice(None) if plan.asked.ids is None else np.array(plan.asked.ids)
        self._ids: list[np.ndarray] = []
        self._logs: list[np.ndarray] = []

    def add(self, log_probabilities: np.ndarray) -> None:
        """ln q of every token of the vocabulary, at the row's next supervised token."""
        asked = self.plan.asked
        told = (asked.tokens, asked.choices, asked.temperature)
        ids, values = top_choices(log_probabilities[self._asked], *told)
        self._ids.append(ids.astype(_IDS))
        self._logs.append(values.astype(_LOGS))

    def close(self) -> None:
        """The row gets its file: one that is there is whole."""
        with replacing(self.plan.file) as partial, partial.open("wb") as handle:
            handle.writelines(one.tobytes() for one in (*self._ids, *self._logs))


Plans = Distributions | TopChoices
Plan = RowPlan | TopPlan
RowSeen = RowDistributions | RowChoices
