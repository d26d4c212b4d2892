"""A comparison as a CSV for people, a JSON for programs, and a table for the console."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from slimtune.artifacts.files import write_json
from slimtune.evaluation.bootstrap import SEED
from slimtune.evaluation.comparison import Comparison
from slimtune.inference.answers import Outcome
from slimtune.masking import masked_in
from slimtune.report.measure_table import MEASURES, value_of
from slimtune.report.standing import best
from slimtune.report.words import LANGUAGES

WORST_SAMPLES, RANDOM_SAMPLES = 12, 3

# Spreadsheets run a cell that starts like this; a plain number is harmless. Full-width forms count.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠\t\r]")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*")


def write_answers_csv(comparison: Comparison, file: Path) -> None:
    """One row a prompt: id, prompt, accepted references, each model's answer with its scores.

    UTF-8 with a BOM, without which Excel shows Chinese as noise; cells that a spreadsheet would run
    as formulas start with an apostrophe.
    """
    with file.open("w", encoding="utf-8-sig", errors="replace", newline="") as handle:
        writer = csv.writer(handle)
        for row in _csv_rows(comparison):
            writer.writerow([_defused(cell) for cell in row])


def write_metrics(comparison: Comparison, file: Path) -> None:
    """Settings, measures, cautions and the worst samples: all that the reports need."""
    content = metrics_of(comparison)
    write_json(file, masked_in(content))


def metrics_of(comparison: Comparison) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "settings": comparison.settings,
        "models": comparison.measures,
        "cautions": comparison.cautions,
        "forgotten": comparison.forgotten,
        "samples": [_sample(comparison, row) for row in worst_rows(comparison)],
        "random_samples": [_sample(comparison, row) for row in random_rows(comparison)],
    }


def worst_rows(comparison: Comparison, count: int = WORST_SAMPLES) -> list[int]:
    """The rows where the best model after the baseline fares worst (ROUGE-L), worst first."""
    shown = comparison.labels.index(best(comparison.measures)["label"])
    scores = [row["rouge_l"] for row in comparison.scores[shown]]
    return sorted(range(len(scores)), key=lambda row: scores[row])[:count]


def random_rows(comparison: Comparison, count: int = RANDOM_SAMPLES) -> list[int]:
    """Rows drawn by chance, the same ones each time, in their order."""
    rows = range(len(comparison.questions))
    return sorted(Random(SEED).sample(rows, min(count, len(rows))))


def comparison_table(
    comparison: Comparison, language: str = "en"
) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) for `console.table`: one row a model, the baseline first; 80 columns."""
    words = LANGUAGES[language].closing
    shown = [name for name, measure in MEASURES.items() if measure.console]
    headers = [words["model"], *(str(MEASURES[name].label(language).console) for name in shown)]
    rows = []
    for measured in comparison.measures:
        cells = [_figure(measured, name) for name in shown]
        rows.append([measured["label"], *cells])
    # The verdict stands beside the measure that decides it; the first has nothing to compare with.
    beside = 2 + shown.index("exact_match")
    verdicts = [words[one["exact_match"]["verdict"]] for one in comparison.measures[1:]]
    headers.insert(beside, words["verdict"])
    for row, verdict in zip(rows, ["–", *verdicts], strict=True):
        row.insert(beside, verdict)
    return headers, rows


def steps(comparison: Comparison, language: str = "en") -> dict[str, str]:
    """Label -> what became of it against the model that it was made from, where that is not the
    first: did distillation win back what pruning lost, did a GGUF lose against merged."""
    words = LANGUAGES[language].steps
    models = {one["label"]: one for one in comparison.measures}
    told = {}
    for label, model in models.items():
        source = models.get(model["made_from"])
        if source is None or source is comparison.measures[0]:
            continue
        verdict = model["exact_match"]["verdict_made_from"]
        points = model["exact_match"]["score"] - source["exact_match"]["score"]
        told[label] = words[verdict].format(source=source["label"], points=points)
        apart = [one["kl_divergence"] for one in (model, source)]
        if model["original"] == source["original"] and all(apart):
            now, before = (_figure(one, "kl_divergence") for one in (model, source))
            told[label] += words["divergence"].format(divergence=now, before=before)
    return told


def _figure(measured: dict[str, Any], name: str) -> str:
    """A measure of one model, or a dash where it has none."""
    value = value_of(measured, name)
    return "–" if value is None else MEASURES[name].written(value)


def _csv_rows(comparison: Comparison) -> Iterator[list[str]]:
    scored = [name for name, measure in MEASURES.items() if measure.csv]
    columns = ["answer", *scored, "reference nats", "reference tokens", "tokens", "ended"]
    decoding = comparison.settings["decoding"]
    said = [] if decoding == "greedy" else [decoding]  # that of all cells beside it
    heads = [f"{label} {column}" for label in comparison.labels for column in columns]
    yield ["id", "prompt", "reference", *heads, *(["decoding"] if said else [])]
    for number, asked in enumerate(comparison.questions):
        row = [asked.id, asked.prompt, " | ".join(asked.references)]
        for outcome, scores in zip(comparison.outcomes, comparison.scores, strict=True):
            answer = outcome.generations[number]
            row += [answer.text]
            row += [MEASURES[name].written(scores[number][name]) for name in scored]
            row += _loss_cells(outcome, number)
            row += [_or_dash(answer.tokens), "yes" if answer.stopped else "no"]
        yield [*row, *said]


def _loss_cells(outcome: Outcome, number: int) -> list[str]:
    """Nats and tokens of the reference; dashes of a server, which scores nothing."""
    if not outcome.losses:
        return ["–", "–"]
    return [f"{outcome.losses[number].nats:.4f}", str(outcome.losses[number].tokens)]


def _or_dash(count: int | None) -> str:
    return "–" if count is None else str(count)


def _sample(comparison: Comparison, number: int) -> dict[str, Any]:
    asked = comparison.questions[number]
    answers = {
        outcome.candidate.label: outcome.generations[number].text for outcome in comparison.outcomes
    }
    return {
        "id": asked.id,
        "prompt": asked.prompt,
        "reference": " | ".join(asked.references),
        "answers": answers,
        "scores": {
            label: scores[number]["rouge_l"]
            for label, scores in zip(comparison.labels, comparison.scores, strict=True)
        },
        "right": {
            label: scores[number]["exact_match"]
            for label, scores in zip(comparison.labels, comparison.scores, strict=True)
        },
    }


def _defused(cell: str) -> str:
    runs = _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs else cell
