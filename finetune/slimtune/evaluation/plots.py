"""Plots as inline SVG: no file, no script, no font of ours, so that Chinese labels show as well.

matplotlib has no CJK glyphs and would draw every label as a row of boxes; a browser has them.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _LABELS, _FIGURES = 760, 210, 110
_ROW, _BAR = 30, 16
_HEIGHT, _LEFT, _BOTTOM = 240, 56, 34


class Bar(NamedTuple):
    """One model's value, its interval (None without one), and how it is written."""

    label: str
    value: float
    interval: tuple[float, float] | None
    written: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0, with whiskers for intervals."""
    ends = [max(bar.value, *(bar.interval or (0.0,))) for bar in rows]
    scale = (_WIDTH - _LABELS - _FIGURES) / (max(ends) or 1.0)
    drawn = [_bar(bar, place * _ROW, scale) for place, bar in enumerate(rows)]
    return _svg(title, _ROW * len(rows), "".join(drawn))


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
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
