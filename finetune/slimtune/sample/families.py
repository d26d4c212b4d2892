"""The families of facts: which facts there are, how each is worded, how its answer is worked out.

A fact is `about:part-part-…`, e.g. `add:7-8` or `river:Lomar`. Families that ask about the same
fact from another side (the river of a town, the town on a river) share `about`, so that a split by
fact keeps them together.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

SAMPLE_LANGUAGES = ("en", "zh")
LEXICON = yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8"))

PhrasePart = str | int
Slots = dict[str, str]

_KINDS: dict[str, dict[str, str]] = LEXICON["kinds"]
_WORDS: dict[str, str] = {
    **{word: chinese for kind in _KINDS.values() for word, chinese in kind.items()},
    **LEXICON["other_words"],
}
_CHINESE: dict[str, str] = {
    **_WORDS,
    **LEXICON["names"],
    **LEXICON["kind_names"],
    **LEXICON["days"],
    **LEXICON["months"],
    **{pair[i]: pair[i + 1] for pair in LEXICON["opposites"] for i in (0, 2)},
}
_OPPOSITES = dict(
    both for left, _, right, _ in LEXICON["opposites"] for both in ((left, right), (right, left))
)
_UNITS = {(unit[0], unit[3]): unit for unit in LEXICON["units"]}
_DAYS, _MONTHS = list(LEXICON["days"]), list(LEXICON["months"])
_ONES: list[str] = LEXICON["number_words"]["ones"]
_TENS: list[str] = LEXICON["number_words"]["tens"]
_DIGITS = "零一二三四五六七八九"


@dataclass(frozen=True)
class FactFamily:
    """One question: `slots(language, *key)` words a fact, `answer(language, *key)` works it out."""

    name: str
    about: str
    keys: tuple[tuple[PhrasePart, ...], ...]
    slots: Callable[..., Slots]
    answer: Callable[..., str]

    def fact(self, key: tuple[PhrasePart, ...]) -> str:
        return f"{self.about}:" + "-".join(map(str, key))

    def key(self, fact: str) -> tuple[PhrasePart, ...]:
        """The parts of a fact's name; the inverse of `fact`."""
        parts = fact.partition(":")[2].split("-")
        return tuple(int(part) if part.isdigit() else part for part in parts)


def say(word: str, language: str) -> str:
    """An English word or name of the world in the language asked for."""
    return _CHINESE[word] if language == "zh" else word


def spell(number: int, language: str) -> str:
    """0 to 99 in words: 47 is "forty-seven" or 四十七."""
    tens, ones = divmod(number, 10)
    if language == "zh":
        head = ("" if tens == 1 else _DIGITS[tens]) + "十" if tens else ""
        return head + (_DIGITS[ones] if ones or not tens else "")
    if number < 20:
        return _ONES[number]
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def _row_of(table: str, name: str) -> dict[str, str]:
    columns = LEXICON[table]["columns"]
    return next(
        dict(zip(columns, row, strict=True)) for row in LEXICON[table]["rows"] if row[0] == name
    )


def _names(table: str) -> tuple[tuple[str], ...]:
    return tuple((row[0],) for row in LEXICON[table]["rows"])


def _listed(language: str, *items: PhrasePart) -> str:
    return ", ".join(str(i) if isinstance(i, int) else say(i, language) for i in items)


def _word_slots(language: str, word: str) -> Slots:
    return {"word": say(word, language)}


def _list_slots(language: str, *items: PhrasePart) -> Slots:
    return {"list": _listed(language, *items)}


def _neighbour(cycle: list[str], step: int) -> Callable[..., str]:
    return lambda language, word: say(cycle[(cycle.index(word) + step) % len(cycle)], language)


def _arithmetic() -> Iterator[FactFamily]:
    def slots(language: str, a: int, b: int) -> Slots:
        return {"a": spell(a, language), "b": spell(b, language)}

    small = range(1, 9)
    cases = {
        "add": (itertools.product(small, small), lambda a, b: a + b),
        "subtract": (((a, b) for a in range(2, 12) for b in small if b < a), lambda a, b: a - b),
        "multiply": (itertools.product(range(2, 7), range(2, 7)), lambda a, b: a * b),
    }
    for name, (keys, operation) in cases.items():
        yield FactFamily(
            name,
            name,
            tuple(keys),
            slots,
            lambda language, a, b, operation=operation: spell(operation(a, b), language),
        )


def _numbers() -> Iterator[FactFamily]:
    numbers = tuple((number,) for number in range(1, 100))
    yield FactFamily(
        "spell_number", "number", numbers, lambda language, n: {"number": str(n)}, _spelled
    )
    yield FactFamily("read_number", "number", numbers, _spelled_slots, lambda language, n: str(n))
    keys = tuple((count, *unit) for unit in _UNITS for count in range(1, 11))
    yield FactFamily("convert", "convert", keys, _unit_slots, _converted)
    triples = tuple(itertools.permutations(range(1, 10), 3))
    yield FactFamily(
        "sort_up", "order", triples, _list_slots, lambda lang, *n: _listed(lang, *sorted(n))
    )
    yield FactFamily(
        "sort_down", "order", triples, _list_slots, lambda lang, *n: _listed(lang, *sorted(n)[::-1])
    )
    yield FactFamily("largest", "order", triples, _list_slots, lambda lang, *n: str(max(n)))
    yield FactFamily("smallest", "order", triples, _list_slots, lambda lang, *n: str(min(n)))


def _spelled(language: str, number: int) -> str:
    return spell(number, language)


def _spelled_slots(language: str, number: int) -> Slots:
    return {"spelled": spell(number, language)}


def _unit_slots(language: str, count: int, large: str, small: str) -> Slots:
    unit = _UNITS[large, small]
    names = (unit[1], unit[4]) if language == "zh" else (large, small)
    return {"count": str(count), "large": names[0], "small": names[1]}


def _converted(language: str, count: int, large: str, small: str) -> str:
    return str(count * _UNITS[large, small][2])


def _lists() -> Iterator[FactFamily]:
    draw = random.Random(1)
    animals, words = list(_KINDS["animal"])[:4], list(_WORDS)
    counts = {
        (draw.choice(pair := draw.sample(animals, 2)), *draw.choices(pair, k=draw.randint(2, 4)))
        for _ in range(300)
    }
    keys = tuple(sorted(key for key in counts if key[0] in key[1:]))
    yield FactFamily(
        "count",
        "count",
        keys,
        lambda lang, word, *items: {"word": say(word, lang), "list": _listed(lang, *items)},
        lambda lang, word, *items: str(items.count(word)),
    )
    lists = tuple(tuple(draw.sample(words, draw.randint(2, 5))) for _ in range(150))
    yield FactFamily("length", "list", lists, _list_slots, lambda lang, *items: str(len(items)))
    yield FactFamily("first", "list", lists, _list_slots, lambda lang, *items: say(items[0], lang))
    yield FactFamily("last", "list", lists, _list_slots, lambda lang, *items: say(items[-1], lang))


def _people_and_towns() -> Iterator[FactFamily]:
    for table in ("people", "towns"):
        for column in LEXICON[table]["columns"][1:]:
            yield FactFamily(
                column,
                column,
                _names(table),
                lambda language, name: {"name": say(name, language)},
                lambda lang, name, table=table, column=column: say(
                    _row_of(table, name)[column], lang
                ),
            )
    yield FactFamily(
        "town_on_river",
        "river",
        _names("towns"),
        lambda language, town: {"river": say(_row_of("towns", town)["river"], language)},
        lambda language, town: say(town, language),
    )


def _words() -> Iterator[FactFamily]:
    words = tuple((word,) for word in _WORDS)
    yield FactFamily(
        "chinese_word",
        "word",
        words,
        lambda language, word: {"word": word},
        lambda language, word: _WORDS[word],
    )
    yield FactFamily(
        "english_word",
        "word",
        words,
        lambda language, word: {"word": _WORDS[word]},
        lambda language, word: word,
    )
    opposites = tuple((word,) for word in _OPPOSITES)
    yield FactFamily(
        "opposite", "opposite", opposites, _word_slots, lambda lang, w: say(_OPPOSITES[w], lang)
    )
    for name, cycle in (("day", _DAYS), ("month", _MONTHS)):
        keys = tuple((word,) for word in cycle)
        for side, step in (("next", 1), ("previous", -1)):
            yield FactFamily(
                f"{side}_{name}", f"{side}_{name}", keys, _word_slots, _neighbour(cycle, step)
            )
    kinds = {word: kind for kind, members in _KINDS.items() for word in members}
    yield FactFamily(
        "kind",
        "kind",
        tuple((word,) for word in kinds),
        _word_slots,
        lambda lang, word: say(kinds[word], lang),
    )


FACT_FAMILIES: dict[str, FactFamily] = {
    family.name: family
    for family in (*_arithmetic(), *_numbers(), *_lists(), *_people_and_towns(), *_words())
}
