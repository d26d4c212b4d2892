"""The general set of the sample's own world: what its base has read and no task asks for.

    cd finetune && python -c "from slimtune.sample import own_world; own_world.write()"

Sentences of the world broken off before their last word, whole lines of its text to be surprised
at, and others to be replayed in training. It is written for data/general/world; a test compares.
"""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from slimtune.data.general_sets import WORLD, rows_file
from slimtune.sample.families import FACT_FAMILIES, SAMPLE_LANGUAGES, FactFamily
from slimtune.sample.world import broken_off, world_text

_SEED = 2718  # of no text that the models have read or that create_sample_data writes
_EACH = {"arithmetic": 40, "copying": 40, "facts": 40, "words": 30}  # items of a language
_TEXTS, _ROWS = 24, 300
_FAMILIES = {
    "arithmetic": ["add", "subtract", "multiply", "convert", "spell_number", "read_number"],
    "copying": ["sort_up", "sort_down", "largest", "smallest", "length", "first", "last"],
    "facts": ["job", "home", "pet", "fruit", "instrument", "river", "town_on_river"],
    "words": ["opposite", "next_day", "previous_day", "next_month", "previous_month", "kind"],
}


def write() -> None:
    """The three files, where `general_set` reads them."""
    for name, lines in own_world().items():
        text = "".join(f"{line}\n" for line in lines)
        rows_file(WORLD).with_name(name).write_text(text, encoding="utf-8", newline="\n")


def own_world() -> dict[str, list[str]]:
    """The lines of each file by its name, the same ones each time."""
    lines = list(world_text(_SEED, _TEXTS + _ROWS))
    passages, rows = lines[:_TEXTS], lines[_TEXTS:]
    told = " ".join(rows)
    items = [item for language in SAMPLE_LANGUAGES for item in _items(language, told)]
    texts = [{"language": None, "text": line} for line in passages]
    return {
        "items.jsonl": [json.dumps(item, ensure_ascii=False) for item in items],
        "texts.jsonl": [json.dumps(text, ensure_ascii=False) for text in texts],
        rows_file(WORLD).name: rows,
    }


def _items(language: str, told: str) -> Iterator[dict[str, Any]]:
    """Broken sentences of a language that stand in none of the rows to be replayed."""
    draw = random.Random(f"{_SEED}{language}")
    for family, names in _FAMILIES.items():
        found: dict[str, dict[str, Any]] = {}
        for number in range(100 * _EACH[family]):
            one = FACT_FAMILIES[names[number % len(names)]]
            start, answer = _broken(draw, one, language)
            if start and start not in told and len(found) < _EACH[family]:
                ended = r"(?![\w-])" if language == "en" else r"([。，,. ]|$)"
                found.setdefault(start, {"answers": [f"^{re.escape(answer)}{ended}"]})
        for number, (start, checked) in enumerate(found.items(), start=1):
            about = {"id": f"{language}-{family}-{number:02d}", "language": language}
            about |= {"family": family, "question": start, "check": "regex"}
            yield about | checked


def _broken(draw: random.Random, family: FactFamily, language: str) -> tuple[str, str]:
    """A sentence up to the answer that ends it, and that answer; nothing where none ends so."""
    return broken_off(draw, family, draw.choice(family.keys), language)
