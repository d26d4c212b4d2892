"""A closed world in English and Chinese: rows that ask about it, their check, text that tells it.

The plain text states every fact of the world in both languages and many wordings, so a model that
has read it knows every answer; the rows ask for them in a form that the text never uses.
"""

from __future__ import annotations

import random
import re
import string
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import yaml

from slimtune.sample.families import FACT_FAMILIES, SAMPLE_LANGUAGES, FactFamily

_PHRASES = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))
_FRAMES = _PHRASES.pop("frames")
_NAMES = list(FACT_FAMILIES)
# Large families are rules (sorting), small ones facts to remember, which need more turns each;
# what depends on two words at once (a sum, a count) is learned last and told most.
_HARD = {"add": 2.5, "subtract": 2.5, "multiply": 2.0, "convert": 1.5, "count": 2.0, "first": 1.5}
_WEIGHTS = [
    min(len(family.keys), 100) ** 0.5 * _HARD.get(name, 1.0)
    for name, family in FACT_FAMILIES.items()
]
_PROSE_SHARE = 0.4
# Copied signs train the embedding of every character of a prompt template without showing one.
_SIGNS_SHARE = 0.02
_SIGNS = string.punctuation + string.ascii_uppercase
_PATIENCE = 300  # draws in a row that bring no new question


def rows(seed: int, count: int) -> list[dict[str, str]]:
    """`count` different Alpaca rows: instruction, input, output, fact, family, language.

    All rows about one fact, in either language and any wording, carry the same `fact`. The same
    seed gives the same rows. Raises ValueError when the world has no `count` different questions.
    """
    draw = random.Random(seed)
    seen: dict[tuple[str, str], dict[str, str]] = {}
    repeats = 0
    while len(seen) < count:
        row = _row(draw)
        new = seen.setdefault((row["instruction"], row["input"]), row) is row
        repeats = 0 if new else repeats + 1
        if repeats == _PATIENCE:
            raise ValueError(f"the sample world has hardly more than {len(seen)} questions")
    return list(seen.values())


def check_answer(row: dict[str, str], answer: str) -> bool:
    """Whether `answer` is right, worked out again from the row's fact.

    Case, width, spaces and a final full stop do not count.
    """
    family = FACT_FAMILIES[row["family"]]
    truth = family.answer(row["language"], *family.key(row["fact"]))
    return _plain(answer) == _plain(truth)


def world_text(seed: int, lines: int) -> Iterator[str]:
    """`lines` lines of plain text, each a few sentences about facts from the whole world."""
    draw = random.Random(seed)
    for _ in range(lines):
        yield " ".join(_sentence(draw) for _ in range(draw.randint(2, 6)))


def _draw_fact(draw: random.Random) -> tuple[FactFamily, tuple, str]:
    family = FACT_FAMILIES[draw.choices(_NAMES, _WEIGHTS)[0]]
    return family, draw.choice(family.keys), draw.choice(SAMPLE_LANGUAGES)


def _question(
    draw: random.Random, family: FactFamily, key: tuple, language: str
) -> tuple[str, str]:
    phrase = draw.choice(_PHRASES[family.name][language]["ask"])
    return _cut(phrase.format(**family.slots(language, *key)))


def _cut(phrase: str) -> tuple[str, str]:
    instruction, _, given = phrase.partition(" | ")
    return instruction, given


def _row(draw: random.Random) -> dict[str, str]:
    family, key, language = _draw_fact(draw)
    instruction, given = _question(draw, family, key, language)
    if not given:
        frame = draw.choice(_FRAMES["instruction"][language])
        instruction, given = _cut(frame.format(question=instruction))
    return {
        "instruction": instruction,
        "input": given,
        "output": family.answer(language, *key),
        "fact": family.fact(key),
        "family": family.name,
        "language": language,
    }


def _sentence(draw: random.Random) -> str:
    if draw.random() < _SIGNS_SHARE:
        signs = "".join(draw.sample(_SIGNS, draw.randint(2, 8)))
        return f"The signs {signs} and again {signs}."
    family, key, language = _draw_fact(draw)
    answer = family.answer(language, *key)
    if draw.random() < _PROSE_SHARE:
        question = " ".join(filter(None, _question(draw, family, key, language)))
        frame = draw.choice(_FRAMES["prose"][language])
        return frame.format(question=question, answer=answer)
    phrase = draw.choice(_PHRASES[family.name][language]["tell"])
    return phrase.format(answer=answer, **family.slots(language, *key))


def _plain(answer: str) -> str:
    folded = unicodedata.normalize("NFKC", answer).casefold().strip().rstrip(".。")
    return re.sub(r"\s*,\s*", ", ", re.sub(r"\s+", " ", folded)).strip()


def broken_off(
    draw: random.Random, family: FactFamily, key: tuple, language: str
) -> tuple[str, str]:
    """A statement up to the answer that ends it, and the answer; two empty texts where no wording
    of the family ends so."""
    ends = ("{answer}.", "{answer}。")
    phrases = [one for one in _PHRASES[family.name][language]["tell"] if one.endswith(ends)]
    if not phrases:
        return "", ""
    start = draw.choice(phrases)[: -len(ends[0])]
    answer = family.answer(language, *key)
    return start.format(answer=answer, **family.slots(language, *key)).rstrip(), answer
