"""report.html: the same report as one self-contained page, with plots; it asks nothing of the net.

The blocks are those of the Markdown report, already inert; a content security policy forbids
scripts and every request on top of that. Plots are inline SVG, whose labels the browser writes:
matplotlib has no Chinese glyphs and would draw a row of boxes.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from slimtune.report import training_report
from slimtune.report.measure_table import MEASURES, Group, names_of, value_of
from slimtune.report.words import LANGUAGES, Words

_STYLE = Path(__file__).with_name("page.css")
_CODES = {"en": "en", "zh": "zh-CN"}
_PLACE = re.compile(r"<p>(\$\{\w+\})</p>")
_SIGN = re.compile("[▲▼](?=</td>)")
_CLASSES = {"▲": "better", "▼": "worse"}


def render_page(
    lineage: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Any],
    *,
    language: str = "en",
    curve: Sequence[Mapping[str, float]] = (),
) -> str:
    """The whole page; the arguments are those of `report_places`."""
    words = LANGUAGES[language]
    convert = MarkdownIt("commonmark", {"html": True}).enable("table").render
    places = training_report.report_places(lineage, metrics, language=language, curve=curve)
    blocks = {place: convert(block) for place, block in places.items()}
    blocks["comparison"] = _bars_of("quality", metrics, words) + _coloured(blocks["comparison"])
    blocks["cost"] = _bars_of("cost", metrics, words) + blocks["cost"]
    blocks["training"] += _curve(curve, words)
    template = training_report.report_template(language)
    # The template is turned into HTML first: no text of a row is ever read as a place.
    template.template = _PLACE.sub(r"<section>\1</section>", convert(template.template))
    title = re.search(r"<h1>(.*?)</h1>", template.template)
    return _PAGE.format(
        language=_CODES[language],
        title=escape(title[1] if title else ""),
        style=_STYLE.read_text(encoding="utf-8"),
        body=template.substitute(blocks),
    )


_PAGE = """\
<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def _bars_of(group: Group, metrics: Mapping[str, Any], words: Words) -> str:
    """The plots of a group: of each measure that the table wants drawn."""
    plotted = [name for name in names_of(group) if MEASURES[name].plot]
    return "".join(_measure_bars(metrics["models"], name, words) for name in plotted)


def _measure_bars(models: Sequence[Mapping[str, Any]], name: str, words: Words) -> str:
    """A bar for each model that has the measure, with its interval where it was judged."""
    measure = MEASURES[name]
    rows = []
    for model in models:
        value = value_of(model, name)
        if value is None:
            continue
        judged = model[name] if measure.group == "quality" else None
        interval = (judged["low"], judged["high"]) if judged else None
        rows.append(Bar(model["label"], value, interval, measure.written(value)))
    return bar_chart(measure.title(words.language), rows) if rows else ""


def _curve(curve: Sequence[Mapping[str, float]], words: Words) -> str:
    _, *names = words.curve
    lines = {
        name: [(entry["step"], entry[key]) for entry in curve if key in entry]
        for name, key in zip(names, ("loss", "eval_loss"), strict=True)
    }
    drawn = {name: line for name, line in lines.items() if line}
    return line_chart(", ".join(drawn), drawn) if drawn else ""


def _coloured(block: str) -> str:
    """The signs of better and worse at the end of a cell, in their colours."""

    def coloured(sign: re.Match[str]) -> str:
        return f'<b class="{_CLASSES[sign[0]]}">{sign[0]}</b>'

    return _SIGN.sub(coloured, block)


_WIDTH, _LABELS, _FIGURES = 760, 210, 110
_ROW, _BAR = 30, 16
_HEIGHT, _LEFT, _BOTTOM = 240, 56, 34


class Bar(NamedTuple):
    """One model's value, its interval (None without one), and how it is written."""

    label: str
    value: float
    interval: tuple[float, float] | None
    written: str


def bar_chart(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0, with whiskers for intervals."""
    ends = [max(bar.value, *(bar.interval or (0.0,))) for bar in rows]
    scale = (_WIDTH - _LABELS - _FIGURES) / (max(ends) or 1.0)
    drawn = [_bar(bar, place * _ROW, scale) for place, bar in enumerate(rows)]
    return _svg(title, _ROW * len(rows), "".join(drawn))


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through (step, loss) points, one class of line a series, with a legend."""
    points = [point for line in series.values() for point in line]
    (left, right), (low, high) = (_range([point[axis] for point in points]) for axis in (0, 1))
    across = (_WIDTH - _LEFT - 12) / (right - left)
    down = (_HEIGHT - _BOTTOM - 16) / (high - low)

    def place(point: tuple[float, float]) -> str:
        return f"{_LEFT + (point[0] - left) * across:.1f},{12 + (high - point[1]) * down:.1f}"

    parts = [_text(_LEFT - 8, 12 + (high - value) * down + 4, f"{value:.3g}", "end")
             for value in (low, (low + high) / 2, high)]  # fmt: skip
    parts += [_text(_LEFT + (step - left) * across, _HEIGHT - 12, f"{step:.0f}", "middle")
              for step in (left, (left + right) / 2, right)]  # fmt: skip
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(map(place, line))
        parts.append(f'<polyline class="line{number}" points="{path}"/>')
        parts += [f'<circle class="dot{number}" r="2.5" cx="{x}" cy="{y}"/>'
                  for x, y in (place(point).split(",") for point in line)]  # fmt: skip
        parts.append(
            f'<g class="name{number}">{_text(_WIDTH - 12, 24 + 20 * number, name, "end")}</g>'
        )
    return _svg(title, _HEIGHT, "".join(parts))


def _bar(bar: Bar, top: int, scale: float) -> str:
    middle, width = top + _ROW / 2, bar.value * scale
    parts = [
        _text(_LABELS - 10, middle + 4, _fitted(bar.label), "end"),
        f'<rect class="bar" x="{_LABELS}" y="{middle - _BAR / 2}" height="{_BAR}" '
        f'width="{width:.1f}"/>',
    ]
    end = bar.value
    if bar.interval:
        low, high = (_LABELS + one * scale for one in bar.interval)
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}'
            f'M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10"/>'
        )
        end = max(end, bar.interval[1])
    return "".join([*parts, _text(_LABELS + end * scale + 8, middle + 4, bar.written, "start")])


def _fitted(label: str, longest: int = 26) -> str:
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, drawn: str) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f"<figure><figcaption>{escape(title)}</figcaption>{head}{drawn}</svg></figure>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
