"""A comparison as a CSV for people, a JSON for programs, and a table for the console."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimtune.console import size
from slimtune.evaluation.comparison import Comparison

WORST_SAMPLES = 12

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
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def metrics_of(comparison: Comparison) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "settings": comparison.settings,
        "models": comparison.measures,
        "cautions": comparison.cautions,
        "samples": [_sample(comparison, row) for row in worst_rows(comparison)],
    }


def worst_rows(comparison: Comparison, count: int = WORST_SAMPLES) -> list[int]:
    """The rows where the best model after the baseline fares worst (ROUGE-L), worst first."""
    others = range(min(1, len(comparison.labels) - 1), len(comparison.labels))
    shown = max(others, key=lambda m: comparison.measures[m]["rouge_l"]["score"])
    scores = [row["rouge_l"] for row in comparison.scores[shown]]
    return sorted(range(len(scores)), key=lambda row: scores[row])[:count]


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) for `console.table`: one row a model, the baseline first."""
    headers = [
        "model",
        "match %",
        "vs first",
        "ROUGE-L",
        "chrF",
        "perplexity",
        "bits/byte",
        "parameters",
        "on disk",
        "load s",
        "read t/s",
        "write t/s",
        "memory",
    ]
    rows = [_table_row(measured) for measured in comparison.measures]
    rows[0][2] = "–"  # nothing to compare the first with
    return headers, rows


def _table_row(measured: dict[str, Any]) -> list[str]:
    cost, exact = measured["cost"], measured["exact_match"]
    return [
        measured["label"],
        f"{exact['score']:.1f}",
        exact["verdict"],
        f"{measured['rouge_l']['score']:.1f}",
        f"{measured['chrf']['score']:.1f}",
        figure(measured["perplexity"], 2),
        figure(measured["bits_per_byte"], 3),
        f"{cost['parameters']:,}",
        size(cost["bytes_on_disk"]),
        f"{cost['load_seconds']:.1f}",
        f"{cost['prompt_tokens_per_second']:.0f}",
        f"{cost['generated_tokens_per_second']:.0f}",
        size(cost["peak_memory_bytes"]),
    ]


def figure(measure: dict[str, Any] | None, digits: int) -> str:
    """A measure's score, or a dash where there is none."""
    return "–" if measure is None else f"{measure['score']:.{digits}f}"


def _csv_rows(comparison: Comparison) -> Iterator[list[str]]:
    scored = list(comparison.scores[0][0])
    columns = ["answer", *scored, "reference nats", "reference tokens", "tokens", "ended"]
    yield ["id", "prompt", "reference"] + [
        f"{label} {column}" for label in comparison.labels for column in columns
    ]
    for number, asked in enumerate(comparison.questions):
        row = [asked.id, asked.prompt, " | ".join(asked.references)]
        for outcome, scores in zip(comparison.outcomes, comparison.scores, strict=True):
            answer = outcome.generations[number]
            loss = outcome.losses[number]
            row += [answer.text, *(f"{score:.1f}" for score in scores[number].values())]
            row += [f"{loss.nats:.4f}", str(loss.tokens)]
            row += [str(answer.tokens), "yes" if answer.stopped else "no"]
        yield row


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
    }


def _defused(cell: str) -> str:
    runs = _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs else cell
