"""What is asked of a model: plain records, which cross from process to process.

Nothing here imports torch: llama.cpp's child process reads these too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slimtune.config.fields import ELSEWHERE
from slimtune.config.training import ModelSection
from slimtune.errors import InputError
from slimtune.inference.decoding import Decoding
from slimtune.models.gguf_header import is_gguf

TOKEN_BUDGET = 8192  # of a batch: prompts and answers together


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
