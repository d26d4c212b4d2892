"""training_report.md of a whole project, filled from the stages' records and metrics.json.

The result first, then how it came about, then every figure. Nothing is left blank: what is not part
of the comparison says so, and which command would make it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from slimtune.artifacts.records import run_of
from slimtune.console import size
from slimtune.report import forgotten, shown_rows, standing, tables
from slimtune.report.loss_picture import History, best_point, points_of
from slimtune.report.markdown import anchor, code, markdown_table, plain
from slimtune.report.measure_table import names_of
from slimtune.report.stage_sections import Run, command_of, in_order, stage_sections
from slimtune.report.words import LANGUAGES, Words

_FOLDER = Path(__file__).resolve().parents[2]
_TEMPLATES = {"en": "training_report.md", "zh": "training_report.zh-CN.md"}
_CURVE_ROWS = 12
_HISTORY = "metrics.jsonl"


class Found(NamedTuple):
    """All that a report tells of.

    `metrics` is the content of metrics.json, `lineage` maps stages to their run.json, `made` the
    labels of models to the run.json of what made them, `histories` those of trained ones to the
    lines of their metrics.jsonl.
    """

    metrics: Mapping[str, Any]
    lineage: Mapping[str, Run]
    made: Mapping[str, Run] = {}
    histories: Mapping[str, History] = {}

    @classmethod
    def of(cls, metrics: Mapping[str, Any], lineage: Mapping[str, Run]) -> "Found":
        """With what made each model, and how its loss went, read where the model lies."""
        models = metrics["models"]
        places = {one["label"]: Path(one["adapter"] or one["reference"]) for one in models}
        made = {label: run for label, place in places.items() if (run := run_of(place))}
        histories = {label: _history(place) for label, place in places.items()}
        return cls(metrics, lineage, made, {k: lines for k, lines in histories.items() if lines})

    @property
    def steps(self) -> list[standing.Step]:
        return standing.steps(self.metrics["models"], self.made)


def render_report(found: Found, language: str = "en") -> str:
    """The whole report as Markdown."""
    return report_template(language).substitute(report_places(found, language))


def report_template(language: str) -> Template:
    """The report without its blocks: headings, and a `${place}` for each."""
    return Template((_FOLDER / _TEMPLATES[language]).read_text(encoding="utf-8"))


def report_places(found: Found, language: str) -> dict[str, str]:
    """Place of the template -> Markdown."""
    words, metrics, models = LANGUAGES[language], found.metrics, found.metrics["models"]
    losses = [_curve(label, lines, words) for label, lines in found.histories.items()]
    blocks = {
        "verdict": ["  \n".join(line.sentence for line in tables.verdict_lines(metrics, words))],
        "contents": [_contents(report_template(language).template)],
        "sizes": [tables.size_table(models, words)],
        "steps": [tables.step_table(models, found.steps, words)],
        "forgotten": forgotten.section(metrics.get("forgotten"), words),
        "samples": [shown_rows.rows_markdown(metrics, words)],
        "losses": losses or [words.no_losses],
        "warnings": [tables.warnings(metrics, words)],
        "comparison": tables.comparison(metrics, words),
        "cost": [tables.side_by_side(models, names_of("cost"), words)],
        "stage_costs": [_stage_costs(found.lineage, words)],
        "stages": [stage_sections(found.lineage, words)],
        "reproduction": [_reproduction(found.lineage, words)],
        "measures": [tables.explanations(words)],
    }
    return {place: "\n\n".join(parts) for place, parts in blocks.items()}


def _contents(template: str) -> str:
    headings = re.findall(r"^## (.+)$", template, re.M)
    return "\n".join(f"- [{heading}](#{anchor(heading)})" for heading in headings)


def _curve(label: str, history: History, words: Words) -> str:
    """The best validation in a sentence; at most a dozen steps as a table, all validations as far
    as they fit, training losses between them."""
    losses: dict[int, list[str]] = {}
    for column, key in enumerate(("loss", "eval_loss")):
        for step, loss in points_of(history, key):
            losses.setdefault(int(step), ["", ""])[column] = f"{loss:.4f}"
    steps = sorted(losses)
    stride = max(-(-len(steps) // _CURVE_ROWS), 1)
    kept = [step for place, step in enumerate(steps) if place % stride == 0 or losses[step][1]]
    best = best_point(history)
    parts = [f"### {words.loss_title.format(label=plain(label))}"]
    parts += [words.best_sentence.format(step=best[0], loss=best[1])] if best else []
    rows = [[str(step), *losses[step]] for step in kept]
    return "\n\n".join([*parts, markdown_table(words.curve, rows)])


def _stage_costs(lineage: Mapping[str, Run], words: Words) -> str:
    rows = [
        [words.stage_titles[name], f"{run['seconds']:.1f}", size(run["peak_memory_bytes"])]
        for name, run in in_order(lineage)
    ]
    return markdown_table(words.stages, rows) if rows else words.no_commands


def _reproduction(lineage: Mapping[str, Run], words: Words) -> str:
    runs = in_order(lineage)
    if not runs:
        return words.no_commands
    commands = "\n".join(command_of(run) for _, run in runs).replace("```", "")
    last = runs[-1][1]
    machine = words.machine.format(
        machine=plain(last["machine"]),
        versions=plain(", ".join(f"{name} {v}" for name, v in last["versions"].items())),
        commit=code(last["git_commit"] or "–"),
    )
    return f"```bash\n{commands}\n```\n\n{machine}"


def _history(place: Path) -> History:
    """The lines of metrics.jsonl in a model's folder; none where it has no such file."""
    file = place / _HISTORY
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
