"""What the test shares with training, told whatever the settings: its answers, and questions alike.

A test question has a twin where a training question is at least half like it,

    J(A, B) = |A & B| / |A | B| >= 1/2   for their sets of shingles: 3 |A & B| >= |A| + |B|

Up to 300 test questions are looked at (a standard error below 3 points), each against every
training question, or 100,000 evenly spaced ones of more: 40 µs each. Only the test's shingles
are kept, 200,000 at most; the training questions pass by as their lines are written.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimtune.data import splits
from slimtune.data.preparation import Prepared
from slimtune.data.similarity import asked_in, shingles
from slimtune.data.turns import Message

SIMILARITY = 0.5
_MOST_QUESTIONS = 300
_MOST_SHINGLES = 200_000
_MOST_TRAINING = 100_000


@dataclass(frozen=True)
class Asked:
    """The shingles of questions: in which each stands, and how many a question has."""

    places: dict[str, np.ndarray]
    sizes: np.ndarray

    @classmethod
    def of(cls, conversations: Iterable[list[Message]]) -> "Asked":
        """Of the first conversations whose questions fit into the memory allowed."""
        places: dict[str, list[int]] = {}
        sizes: list[int] = []
        for messages in conversations:
            found = shingles(asked_in(messages))
            if sizes and sum(sizes) + len(found) > _MOST_SHINGLES:
                break
            for shingle in found:
                places.setdefault(shingle, []).append(len(sizes))
            sizes.append(len(found))
        packed = {shingle: np.array(where, np.int32) for shingle, where in places.items()}
        return cls(packed, np.array(sizes, np.int64))

    def twins(self, messages: list[Message]) -> list[int]:
        """Which of them the question of `messages` is at least half like."""
        found = shingles(asked_in(messages))
        shared = [self.places[shingle] for shingle in found & self.places.keys()]
        if 2 * len(shared) < len(found):  # |A & B| <= |B|, so that 3 |A & B| < |A| + |B|
            return []
        common = np.bincount(np.concatenate(shared), minlength=len(self.sizes))
        return np.flatnonzero(3 * common >= self.sizes + len(found)).tolist()


class Leakage:
    """Gathers, while rows are written, which of the test's questions training is like."""

    def __init__(self, prepared: Prepared) -> None:
        judged = prepared.judged
        kept = judged.kind == 0
        self._train = kept & (judged.split == splits.TRAIN)
        tested = np.flatnonzero(kept & (judged.split == splits.TEST))
        answers = np.frombuffer(prepared.columns.answer, np.uint64)
        self._tested = len(tested)
        self._answers = int(np.isin(answers[tested], answers[self._train]).sum())
        self._stride = -(-int(self._train.sum()) // _MOST_TRAINING) or 1
        self.asked = Asked.of(_conversations(prepared, _sampled(tested)))
        self._found = np.zeros(len(self.asked.sizes), bool)

    def compares(self, place: int) -> bool:
        """Whether the row there is a training row to be met."""
        return bool(self._train[place]) and place % self._stride == 0 and self._tested > 0

    def meet(self, twins: Iterable[int]) -> None:
        self._found[list(twins)] = True

    def numbers(self) -> dict[str, Any]:
        """Counts of test rows; nothing where there is no test."""
        if not self._tested:
            return {}
        return {
            "test_rows": self._tested,
            "answers_in_training": self._answers,
            "questions_compared": len(self._found),
            "questions_alike": int(self._found.sum()),
            "similarity": SIMILARITY,
            "training_compared": round(1 / self._stride, 4),
        }


def _sampled(places: np.ndarray) -> np.ndarray:
    if len(places) <= _MOST_QUESTIONS:
        return places
    return np.sort(np.random.default_rng(0).choice(places, _MOST_QUESTIONS, replace=False))


def _conversations(prepared: Prepared, places: np.ndarray) -> Iterator[list[Message]]:
    wanted = set(places.tolist())
    for place, line in prepared.lines() if wanted else ():
        if place in wanted:
            yield json.loads(line)["messages"]
