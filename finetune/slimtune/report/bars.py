"""Bars as rows of the page: the steps from model to model as a waterfall, and single measures.

The words are the page's own and the bars percentages of their row, so that both fit any width.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import NamedTuple

from slimtune.report.measure_table import MEASURES, value_of
from slimtune.report.standing import Model, Step, leading, score
from slimtune.report.tables import SIGNS, interval, step_cost, step_gain
from slimtune.report.words import Words

KINDS = {"better": "better", "worse": "worse"}  # verdict -> class


class _Scale(NamedTuple):
    """Values from `low` to `high` as percentages of a row's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return 100 * (value - self.low) / ((self.high - self.low) or 1.0)


def step_bars(models: Sequence[Model], steps: Sequence[Step], words: Words) -> str:
    """A row for the first model and one for each step: from its source's score to its own."""
    name = leading(models)
    measure = MEASURES[name]
    ends = [one[name][end] for one in models for end in ("low", "high", "score")]
    scale = _Scale(min(ends), max(ends))
    first = models[0]
    start = _track(scale, scale.low, score(first, name), first[name], "same")
    rows = [_row(escape(first["label"]), start, measure.written(score(first, name)), "", "")]
    for step in steps:
        kind = KINDS.get(step.verdict or "", "same")
        before, after = score(step.source, name), score(step.model, name)
        drawn = _track(scale, before, after, step.model[name], kind)
        label, source = (escape(one["label"]) for one in (step.model, step.source))
        said = words.step if step.made else words.beside
        told = said.format(label=f"<strong>{label}</strong>", source=source)
        gain = f"{step_gain(step, name, words)} {SIGNS.get(step.verdict or '', '')}".strip()
        rows.append(_row(told, drawn, gain, kind, step_cost(step, words)))
    title = measure.title(words.language)
    ends_told = "".join(f"<span>{measure.written(end)}</span>" for end in scale)
    rows.append(f'<div class="row scale"><span></span><span class="ends">{ends_told}</span></div>')
    return _figure("steps", title, rows)


def measure_bars(models: Sequence[Model], name: str, words: Words) -> str:
    """A bar from 0 for each model that has the measure, with its interval where it has one.

    What is no number, of damaged weights, stands in the tables and has no length.
    """
    measure = MEASURES[name]
    values = [(one, value_of(one, name)) for one in models]
    known = [(one, value) for one, value in values if value is not None and isfinite(value)]
    judged: dict[str, Mapping[str, float]] = {}
    if measure.group == "quality":
        judged = {one["label"]: one[name] for one, _ in known}
    ends = [value for _, value in known] + [one["high"] for one in judged.values()]
    scale = _Scale(0.0, max([*ends, 0.0]))
    rows = []
    for one, value in known:
        found = judged.get(one["label"])
        drawn = _track(scale, 0.0, value, found, "plain")
        told = f' title="{interval(measure, found)}"' if found else ""
        rows.append(_row(escape(one["label"]), drawn, measure.written(value), "", "", told))
    return _figure("bars", measure.title(words.language), rows) if rows else ""


def _track(
    scale: _Scale, start: float, end: float, judged: Mapping[str, float] | None, kind: str
) -> str:
    left, right = sorted((scale.at(start), scale.at(end)))
    drawn = f'<rect class="bar {kind}" x="{left:.2f}%" width="{max(right - left, 0.4):.2f}%" '
    drawn += 'y="4" height="14"/>'
    if judged:
        low, high = scale.at(judged["low"]), scale.at(judged["high"])
        drawn += f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="11" y2="11"/>'
    return f'<svg class="track" aria-hidden="true">{drawn}</svg>'


def _row(what: str, track: str, figure: str, kind: str, beneath: str, told: str = "") -> str:
    """One line: words, bar, figure; and what it cost beneath."""
    small = f'<span class="note">{escape(beneath)}</span>' if beneath else ""
    value = f'<span class="value {kind}"{told}>{escape(figure)}</span>'
    return f'<div class="row"><span class="what">{what}</span>{track}{value}{small}</div>'


def _figure(kind: str, title: str, rows: Sequence[str]) -> str:
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f'<figure class="{kind}">{caption}{"".join(rows)}</figure>'
