"""`measures.yaml`, the table of all measures: read, checked and typed.

Whoever shows a measure asks here for its name, direction and digits, in the table's order. The
meaning of each key of an entry is told at the head of the YAML file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from slimtune.console import size

Group = Literal["quality", "health", "cost"]
Source = Literal["answer", "corpus", "losses", "divergences"]

_ARROWS = {"higher": "↑", "lower": "↓", "one": "→", "none": ""}
_FORMATS = {"count": "{:,}".format, "bytes": size, "rate": "{:,.0f}".format}


class _Entry(BaseModel):
    """A part of the table: unknown keys and missing ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Entry):
    """A measure's words in one language; `console` is the header of its column on the terminal."""

    title: str
    meaning: str
    console: str | None = None


class Measure(_Entry):
    """One entry of the table."""

    group: Group
    over: Source | None = None
    arrow: Literal["higher", "lower", "one", "none"]
    digits: int | Literal["count", "bytes", "rate"]
    unit: str
    csv: bool = False
    plot: bool = False
    one_tokenizer: bool = False
    en: Label
    zh: Label

    @model_validator(mode="after")
    def _only_quality_has_a_source(self) -> "Measure":
        if (self.group == "quality") != (self.over is not None):
            raise ValueError("`over` belongs to quality, and to each measure of it")
        if self.csv and self.over != "answer":
            raise ValueError("a CSV has a column only of what is measured over each answer")
        if bool(self.en.console) != bool(self.zh.console):
            raise ValueError("a column on the terminal has a header in both languages")
        return self

    @property
    def console(self) -> bool:
        """Whether the console's table shows it."""
        return self.en.console is not None

    def label(self, language: str) -> Label:
        return {"en": self.en, "zh": self.zh}[language]

    def title(self, language: str) -> str:
        """Its name and the arrow of its better direction."""
        return f"{self.label(language).title} {_ARROWS[self.arrow]}".strip()

    def written(self, value: float) -> str:
        """A value with the digits of this measure."""
        if isinstance(self.digits, int):
            return f"{value:.{self.digits}f}"
        return _FORMATS[self.digits](value)


def read_table(text: str) -> dict[str, Measure]:
    """Name -> measure, in the order of the text; ValueError where an entry is not as it should."""
    return {name: Measure(**entry) for name, entry in yaml.safe_load(text).items()}


MEASURES = read_table(Path(__file__).with_name("measures.yaml").read_text(encoding="utf-8"))


def names_of(group: Group) -> list[str]:
    """The measures of a group, in the order of the table."""
    return [name for name, measure in MEASURES.items() if measure.group == group]


def names_over(source: Source) -> list[str]:
    """The measures that are computed from `source`, in the order of the table."""
    return [name for name, measure in MEASURES.items() if measure.over == source]


def value_of(model: Mapping[str, Any], name: str) -> float | None:
    """A measure's value among the plain data of one model in metrics.json; None where it has none.

    Quality stands there with its interval and verdict, health and cost under their groups.
    """
    group = MEASURES[name].group
    if group != "quality":
        return model[group][name]
    return None if model[name] is None else model[name]["score"]
