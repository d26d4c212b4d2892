"""The card of a run of several stages: what each cost, and what came of it, from their records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimtune.artifacts.combined_run import Link
from slimtune.artifacts.files import write_page
from slimtune.artifacts.records import run_of
from slimtune.console import decoration, near, size, table
from slimtune.report.measure_table import MEASURES, value_of
from slimtune.report.standing import leading, score

_FITS = ("bytes_on_disk", "generated_tokens_per_second")
_COMPARED = ("perplexity", "exact_match", "generated_tokens_per_second")
HEADERS = ["stage", "seconds", "peak memory", "parameters", "on disk", "validation loss"]
HEADERS += [MEASURES[name].label("en").title for name in _COMPARED]
# What of it fits 80 columns of a terminal; the rest is in the card.
_CLOSING = ["stage", "seconds", "peak memory", "on disk"]
_CLOSING += [MEASURES[name].label("en").title for name in _COMPARED[:2]]
_NOTHING = "–"
_COUNTED = ("teacher_cache", "convert_to_gguf")  # stages that tell their bytes
_PARAMETERS = ("parameters_after", "trainable_parameters", "parameters")


def cost_rows(links: Mapping[str, Link]) -> list[list[str]]:
    """A row for each finished stage, under HEADERS.

    Seconds and peak memory are the stage's own, parameters those that its output adds or has. The
    last stage is a comparison of the base with what the stages it reads have written: perplexity,
    exact match and speed are its figures, all on the same rows.
    """
    runs = {name: run_of(link.output) for name, link in links.items()}
    last = [*links][-1]
    models = runs[last]["metrics"]["models"] if runs[last] else []
    found = dict(zip(["base", *links[last].reads], models, strict=False))
    rows = []
    if found:
        base = found["base"]
        rows.append(["base", _NOTHING, _NOTHING, *_size_of(base), _NOTHING, *_brought(base)])
    for name, run in runs.items():
        if run:
            rows.append([name, *_cost(run), *_brought(found.get(name))])
    return rows


def best_that_fits(comparison: Path) -> dict[str, str]:
    """{"best that fits": FILE and its figures}: of the GGUF files of a finished comparison the one
    that answers best, of equally good ones the smaller; nothing where none was compared."""
    run = run_of(comparison)
    files = [one for one in run["metrics"]["models"] if one["kind"] == "gguf"] if run else []
    if not files:
        return {}
    deciding = leading(files)
    best = max(files, key=lambda one: (score(one, deciding), -one["cost"]["bytes_on_disk"]))
    shown = {name: value_of(best, name) for name in (deciding, *_FITS)}
    words = [
        f"{MEASURES[name].label('en').title} {MEASURES[name].written(value)}"
        for name, value in shown.items()
        if value is not None
    ]
    return {"best that fits": f"{near(best['reference'])} ({', '.join(words)})"}


def show_card(links: Mapping[str, Link], card: Path) -> None:
    """The card beside the stages, and what of it fits on the terminal."""
    rows = []
    with decoration(near(card)):
        rows = cost_rows(links)
        write_card(card, f"{card.parent.name}: what each stage cost and brought", rows)
    table(*closing_table(rows))


def closing_table(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) for `console.table`."""
    shown = [HEADERS.index(name) for name in _CLOSING]
    return _CLOSING, [[row[column] for column in shown] for row in rows]


def write_card(file: Path, title: str, rows: Sequence[Sequence[str]]) -> None:
    """The rows as a Markdown table; the file is there whole or not at all."""
    lines = [f"# {title}", "", *(_line(cells) for cells in [HEADERS, _rule(), *rows])]
    lines += ["", "Seconds and peak memory are those of the stage alone. Perplexity, match and"]
    lines += ["speed are measured on the same test rows, one model in memory at a time."]
    write_page(file, "\n".join(lines) + "\n")


def _rule() -> list[str]:
    return ["---", *("---:" for _ in HEADERS[1:])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cost(run: Mapping[str, Any]) -> list[str]:
    metrics = run["metrics"]
    parameters = next((metrics[name] for name in _PARAMETERS if name in metrics), None)
    weights = [one["bytes"] for name, one in run["files"].items() if name.endswith(".safetensors")]
    taken = metrics["bytes"] if run["stage"] in _COUNTED else sum(weights)
    taken = metrics.get("file_bytes", taken)  # a quantised student's folder has its weights as well
    loss = metrics.get("validation_loss_best")
    return [
        f"{run['seconds']:.0f}",
        size(run["peak_memory_bytes"]),
        f"{parameters:,}" if parameters else _NOTHING,
        size(taken) if taken else _NOTHING,
        f"{loss:.4f}" if loss is not None else _NOTHING,
    ]


def _size_of(model: Mapping[str, Any]) -> list[str]:
    cost = model["cost"]
    return [f"{cost['parameters']:,}", size(cost["bytes_on_disk"])]


def _brought(model: Mapping[str, Any] | None) -> list[str]:
    """The figures of a model in the comparison; dashes where it was not compared."""
    cells = []
    for name in _COMPARED:
        value = value_of(model, name) if model else None
        cells.append(_NOTHING if value is None else MEASURES[name].written(value))
    return cells
