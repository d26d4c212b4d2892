"""What a model says, and what that cost: plain records, which cross from process to process.

Nothing here imports torch: llama.cpp's child process reads these too.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from slimtune.data.general_sets import Item
from slimtune.inference.questions import Asked, Candidate

Result = TypeVar("Result")

# What the log counts, as in "34 of 340 prompts answered".
ANSWERED, SCORED = "prompts answered", "texts scored"


@dataclass(frozen=True)
class Generation:
    """An answer: its text without blanks around it, its token ids, whether it ended itself.

    `ids` leave out the end token; `stopped` says that there was one, and the length was not the
    end. `margins` (nats between first and second choice of each step, the end token's included) are
    there where they were asked for. A server keeps ids to itself (None) and may tell their number,
    `counted`.
    """

    text: str
    ids: list[int] | None
    stopped: bool
    margins: list[float] | None = None
    counted: int | None = None

    @property
    def tokens(self) -> int | None:
        """Tokens of the answer, the end token not counted; None where a server does not tell."""
        return self.counted if self.ids is None else len(self.ids)


@dataclass(frozen=True)
class AnswerLoss:
    """Σ −ln p over the supervised tokens of one row (nats), how many they are, and how many of them
    were the model's first choice.

    `margin` is the least lead of the first choice over the second at those tokens (nats), 0 where
    one of them is another. Over the `compared` tokens of them: Σ KL divergence to the original
    (nats), and how many first choices were the original's.
    """

    nats: float
    tokens: int
    hits: int = 0
    divergence: float = 0.0
    agreed: int = 0
    compared: int = 0
    margin: float = 0.0


@dataclass(frozen=True)
class TokenLosses:
    """−ln p of each supervised token given all before it (nats), and whether it is likeliest.

    `margins`: by how much it leads the next likeliest (nats), 0 where it is not likeliest. Where
    the row was compared with an original's: the KL divergence to it at each token (nats), and
    whether both have the same first choice.
    """

    nats: list[float]
    hits: list[bool]
    divergences: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    @property
    def total(self) -> AnswerLoss:
        return AnswerLoss(
            math.fsum(self.nats),
            len(self.nats),
            sum(self.hits),
            math.fsum(self.divergences),
            sum(self.agreements),
            len(self.divergences),
            min(self.margins, default=0.0),
        )


class Speed(NamedTuple):
    """Tokens per second of one sequence: reading the prompt, then generating."""

    prompt: float
    generation: float


@dataclass(frozen=True)
class Cost:
    """What a model takes: speeds are those of a single sequence, memory is its process's peak.

    None is what a server does not tell.
    """

    parameters: int | None
    bytes_on_disk: int | None
    load_seconds: float | None
    prompt_tokens_per_second: float | None
    generated_tokens_per_second: float | None
    seconds: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Examined:
    """What a model answered to general items, and the losses of the set's texts (none of a
    server's). `vocabulary` is `Asked.vocabulary`: losses compare where it is the same."""

    set: str
    items: tuple[Item, ...]
    answers: list[Generation]
    losses: list[AnswerLoss]
    vocabulary: str

    @property
    def answered(self) -> list[tuple[Item, str]]:
        """Each item with the text of its answer."""
        return [(i, one.text) for i, one in zip(self.items, self.answers, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """Everything that was found out about one candidate, row by row; a server has no `losses`.

    `guessing`: nats a token at its best, on rows and on plain texts, of a model that is worse than
    guessing there; else None. `distributions` is where an original has kept what it expects.
    """

    candidate: Candidate
    generations: list[Generation]
    losses: list[AnswerLoss]
    asked: Asked
    cost: Cost
    guessing: float | None = None
    distributions: Path | None = None
    examined: Examined | None = None


def in_order(pairs: Iterable[tuple[int, Result]]) -> list[Result]:
    """The results of (row, result) pairs, by row."""
    return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]
