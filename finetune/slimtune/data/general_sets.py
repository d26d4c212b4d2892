"""What a model can do beyond its task: questions, neutral texts, and rows to replay in training.

Two sets, each three files under `general/`: `project`, in English and Chinese, was
written for this project; `world` is of the sample's own world, for models that have its vocabulary
and know of nothing else. Its questions are beginnings of sentences, since the sample's base reads
text and follows no instructions.

    items.jsonl   {"id", "language", "family", "question", "check", "answers"}
    texts.jsonl   {"language", "text"}; null is no single language
    rows.jsonl    {"language", "family", "question", "answer"}; of the world rows.txt, a text a line

No row asks what an item asks, and no line tells what a broken sentence ends with (tests look).

What follows from `check` is in `evaluation.examination`; no model judges an answer.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("general")
PROJECT, WORLD = "project", "world"
# `tokenizers.vocabulary_digest` of the sample models, which no pruning or training changes.
_SAMPLE = "e5dcec4e4a6ffd73847f7917a5be8f8fe8d47126e8535e859b08995813716b2b"

_LONGEST = {PROJECT: 24, WORLD: 12}


@dataclass(frozen=True)
class Item:
    """A question that a program can mark; any of `answers` is right as `check` says."""

    id: str
    language: str
    family: str
    question: str
    check: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Passage:
    """A neutral text, of one language or of several (None)."""

    language: str | None
    text: str


@dataclass(frozen=True)
class GeneralSet:
    """`asked` says whether items are questions in the prompt template, or beginnings of a text;
    `longest` is how many tokens an answer may have. A text goes on without end: there it is what
    the longest answer takes."""

    name: str
    asked: bool
    longest: int
    items: tuple[Item, ...]
    passages: tuple[Passage, ...]

    def chosen(self, each: int, languages: Sequence[str] | None = None) -> tuple[Item, ...]:
        """At most `each` items of every language, or of those named; each family has its share."""
        places: Counter[tuple[str, str]] = Counter()
        sizes = Counter((item.language, item.family) for item in self.items)
        ranked: dict[str, list[tuple[float, Item]]] = {}
        for item in self.items:
            group = item.language, item.family
            ranked.setdefault(item.language, []).append(
                ((places[group] + 0.5) / sizes[group], item)
            )
            places[group] += 1
        found = []
        for language, items in ranked.items():
            if languages is None or language in languages:
                found += [item for _, item in sorted(items, key=lambda pair: pair[0])[:each]]
        return tuple(found)


def set_name(vocabulary: str) -> str:
    """The set for models with this vocabulary (`tokenizers.vocabulary_digest`)."""
    return WORLD if vocabulary == _SAMPLE else PROJECT


@cache
def general_set(name: str) -> GeneralSet:
    """A set by its name, less its rows."""
    items = tuple(Item(**one | {"answers": tuple(one["answers"])}) for one in _lines(name, "items"))
    passages = tuple(Passage(**one) for one in _lines(name, "texts"))
    return GeneralSet(name, name == PROJECT, _LONGEST[name], items, passages)


def rows_file(name: str) -> Path:
    """The rows of a set that training may replay."""
    return _FOLDER / name / {PROJECT: "rows.jsonl", WORLD: "rows.txt"}[name]


def _lines(name: str, part: str) -> list[dict[str, Any]]:
    text = (_FOLDER / name / f"{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
