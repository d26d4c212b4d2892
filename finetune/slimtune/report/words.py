"""Every sentence and heading of the reports in each language, read from `words.yaml`.

A key that is missing there, or is too many, stops the import with its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class DataWords:
    """The words of the data report; `names` translates files' keys and splits, where it knows them.

    `account` are the places where a row of the input can end, in the order of the report.
    """

    title: str
    balance: str
    picture: str
    splits: str
    floor: str
    chance: str
    leakage: str
    leakage_columns: list[str]
    shared_answers: str
    alike: str
    training_sampled: str
    leakage_cures: str
    languages: str
    reasons: str
    more_reasons: str
    cleaning: str
    unused: str
    unused_columns: list[str]
    tokens: str
    long_rows: str
    total: str
    bytes: str
    examples: str
    example: str
    uncounted: str
    aside: str
    rows: str
    conversations: str
    share: str
    reason: str
    step: str
    all: str
    supervised: str
    account: dict[str, str]
    lengths: dict[str, str]
    names: dict[str, str]


@dataclass(frozen=True)
class Words:
    """Sentences take their figures by name (`str.format`); headers are those of one table each.

    `figures` are what other stages note in their run.json, as `name` or `section.name`, in words;
    `closing` and `steps` are for the terminal's table and the lines under it; `forgotten` is for
    what general questions showed, there and in the report.
    """

    language: str
    contents: str
    verdict: str
    alone: str
    verdict_overlap: str
    alone_overlap: str
    smallest: str
    first_is_smallest: str
    no_sizes: str
    trusted: str
    doubted: str
    first_doubted: str
    verdicts: dict[str, str]
    closing: dict[str, str]
    steps: dict[str, str]
    forgotten: dict[str, Any]
    model: str
    size_title: str
    size_axis: str
    size_note: str
    unsized: str
    best_for_size: str
    as_table: str
    step: str
    beside: str
    divergence: str
    step_columns: tuple[str, ...]
    no_steps: str
    points: str
    step_size: str
    step_speed: str
    step_took: str
    seconds: str
    minutes: str
    between: str
    random_rows: str
    worst_rows: str
    more_rows: str
    other_answers: str
    right: str
    overlap: str
    nothing: str
    told: str
    marked: str
    loss_title: str
    raw: str
    smooth: str
    validation: str
    best: str
    best_sentence: str
    rate: str
    step_axis: str
    taught: str
    no_losses: str
    curve: tuple[str, ...]
    not_part: str
    the_rest: str
    stage_titles: dict[str, str]
    measure: tuple[str, ...]
    setting: tuple[str, ...]
    yes: str
    no: str
    figures: dict[str, str]
    settings: dict[str, str]
    explained: tuple[str, str]
    compared: str
    stages: tuple[str, ...]
    leakage: str
    leakage_unknown: str
    legend: str
    extracted: str
    took: str
    rows: str
    rows_drawn: str
    signatures: str
    reference: str
    no_warnings: str
    no_commands: str
    machine: str
    cautions: dict[str, str]
    data_report: DataWords


def words_from(language: str, entries: Mapping[str, Any]) -> Words:
    """The words of one language; TypeError for a missing or unknown key."""
    read = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()
    }
    read["data_report"] = DataWords(**read["data_report"])
    return Words(language=language, **read)


_TEXT = Path(__file__).with_name("words.yaml").read_text(encoding="utf-8")
LANGUAGES = {
    language: words_from(language, entries) for language, entries in yaml.safe_load(_TEXT).items()
}


def sentence(caution: Mapping[str, Any], language: str = "en") -> str:
    """A caution of a comparison in words; `caution` is its kind and the figures of its sentence."""
    return LANGUAGES[language].cautions[caution["kind"]].format(**caution)
