"""What is asked of a model and what it says: plain records, which cross from process to process.

Nothing here imports torch: llama.cpp's child process reads these too.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from slimtune.config.fields import ELSEWHERE
from slimtune.config.training import ModelSection
from slimtune.data.general_sets import Item
from slimtune.errors import InputError
from slimtune.inference.decoding import Decoding
from slimtune.models.gguf_header import is_gguf

Result = TypeVar("Result")

TOKEN_BUDGET = 8192  # of a batch: prompts and answers together


# What the log counts, as in "34 of 340 prompts answered".
ANSWERED, SCORED = "prompts answered", "texts scored"


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate: a folder, Hub id or GGUF file, with an adapter on top if one is given,
    or one that a server runs, by its address or `ollama:NAME`.

    The adapter of a GGUF is a GGUF, too. `tokenizer` is the model folder that a GGUF of ours was
    made from: it encodes the prompts, and the report compares the two. One that others made has
    none, and is asked with its own vocabulary and its own chat template. `trained` is the folder
    that the file of an adapter was made from, for the same comparison. `fingerprint` is what a
    server says that its model is known by.
    """

    label: str
    reference: str
    adapter: str | None = None
    tokenizer: str | None = None
    fingerprint: str | None = None
    trained: str | None = None

    @property
    def foreign(self) -> bool:
        """Whether it is a GGUF that others made."""
        return self.kind == "gguf" and self.tokenizer is None

    @property
    def kind(self) -> Literal["server", "gguf", "adapter", "model"]:
        if self.reference.startswith(ELSEWHERE):
            return "server"
        if is_gguf(self.reference):
            return "gguf"
        return "adapter" if self.adapter else "model"


@dataclass(frozen=True)
class Question:
    """One row: the conversation up to the last answer, and what counts as a right one.

    The first of `references` is the row's own answer, the one whose loss is measured; `extract`
    names the pattern (of `extraction.PATTERNS`) that finds what counts in an answer.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    references: tuple[str, ...]
    extract: str = "whole"

    @classmethod
    def of(cls, row: Mapping[str, Any], extract: str = "whole") -> "Question":
        """From a canonical row, `extract` where it names no pattern itself.

        InputError if its last message is not the assistant's.
        """
        *asked, answer = row["messages"]
        if answer["role"] != "assistant" or not asked:
            raise InputError(
                f"row {row['id']}: no question with an answer",
                f"it has {len(row['messages'])} messages, the last by the {answer['role']}",
                "prepare the test data with python finetune/prepare_data.py",
            )
        accepted = dict.fromkeys([answer["content"], *(row.get("references") or [])])
        return cls(row["id"], tuple(asked), tuple(accepted), row.get("extract") or extract)

    @property
    def reference(self) -> str:
        """The row's own answer."""
        return self.references[0]

    @property
    def conversation(self) -> list[Mapping[str, str]]:
        return [*self.messages, {"role": "assistant", "content": self.reference}]

    @property
    def answers(self) -> list[str]:
        """Every assistant answer of the conversation: what the perplexity is over."""
        return [m["content"] for m in self.conversation if m["role"] == "assistant"]

    @property
    def prompt(self) -> str:
        """The question as a person reads it: bare if it is one message, else with the roles."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


@dataclass(frozen=True)
class Asked:
    """How the rows became token ids: a digest of all ids, and the rows that lost their start.

    `vocabulary` is a digest of all tokens in the order of their ids.
    """

    digest: str
    shortened: tuple[int, ...]
    vocabulary: str = ""

    def reads_as(self, other: "Asked") -> bool:
        """Whether both read the rows as the same ids of the same vocabulary."""
        return (self.digest, self.vocabulary) == (other.digest, other.vocabulary)


@dataclass(frozen=True)
class Original:
    """The model that another is compared with token by token: where it has kept what it expects of
    each token of the rows, and how it was asked."""

    label: str
    distributions: Path
    asked: Asked


@dataclass(frozen=True)
class Exam:
    """General questions besides the rows: `each` of a language. The first model is asked in all
    languages of its own set; set and languages are then those of all others."""

    each: int
    set: str | None = None
    languages: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Job:
    """What every candidate of a comparison gets, unchanged.

    `numbers` says where and in what numbers to compute, in the words of the settings: each child
    decides for itself, so that the parent needs no torch. `first` is how the baseline was asked
    (None for the baseline itself), `kept_in` the folder that holds answers while a comparison is
    unfinished (None: nowhere). `is_original` has what the model expects kept there too, for others
    that are compared with it; `original` is the one that this model is compared with. `exam` is
    what it is asked besides.
    """

    questions: tuple[Question, ...]
    template: str
    max_length: int
    decoding: Decoding
    numbers: ModelSection = ModelSection()
    token_budget: int = TOKEN_BUDGET
    first: Asked | None = None
    kept_in: Path | None = None
    is_original: bool = False
    original: Original | None = None
    exam: Exam | None = None

    @property
    def computed(self) -> dict[str, Any]:
        """How answers come about beyond the model and the question: what makes them comparable."""
        return {
            "device": self.numbers.device,
            "dtype": self.numbers.dtype,
            "quantization": self.numbers.quantization,
            "token_budget": self.token_budget,
        }


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
