"""What the pictures are drawn with: a canvas of inline SVG, axes with round ticks, room for labels.

A text in an SVG that scales is small on a telephone, so each picture is drawn twice, on a wide and
on a narrow canvas, and the page shows the one that fits. Colours and line widths are page.css's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDE, NARROW = 760, 350
_LINE = 15  # height of a line of text
_CHARACTER, _IDEOGRAPH = 7.7, 13.0  # widths at 12.5 px, bold


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """The area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(across, 0) * max(down, 0)


class Axis(NamedTuple):
    """Values `low` to `high` on pixels `start` to `end`, by their logarithms if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (self._scaled(one) for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most `most` round values, at least two: on a logarithmic axis 1, 2, 5, 10, ...

        Where that leaves less than three on it, they are evenly spaced ones as on a linear axis.
        """
        if self.log:
            for kept in ((1, 2, 5), (1, 3), (1,)):
                found = [one for one in _decades(self.low, self.high, kept)]
                if 3 <= len(found) <= most:
                    return found
        return _even(self.low, self.high, most)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value


def _decades(low: float, high: float, kept: Sequence[int]) -> Iterator[float]:
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in kept:
            value = float(f"{digit}e{power}")
            if low <= value <= high:
                yield value


def _even(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10, 20) if (high - low) / (one * power) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


class Canvas:
    """Shapes in pixels, from the top left corner; `kind` is the class that page.css colours."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        told = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text{told} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through the points."""
        through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="{kind}" points="{through}"/>')

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        self._parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')

    def grid(self, across: Axis, down: Axis, bottom: Sequence[str], left: Sequence[str]) -> None:
        """Lines at the ticks of both axes with their words: as many ticks as there are words."""
        for value, word in zip(down.ticks(6), left, strict=True):
            y = down.at(value)
            self.path([(across.start, y), (across.end, y)], "grid")
            self.text(across.start - 7, y + 4, word, "end", "tick")
        for value, word in zip(across.ticks(self.columns), bottom, strict=True):
            x = across.at(value)
            self.path([(x, down.start), (x, down.start + 5)], "rule")
            anchor = "end" if x > self.width - 20 else "middle"
            self.text(x, down.start + 19, word, anchor, "tick")
        self.path([(across.start, down.start), (across.end, down.start)], "rule")

    @property
    def columns(self) -> int:
        """How many ticks find room side by side."""
        return 9 if self.width >= WIDE else 5

    def drawn(self, title: str) -> str:
        kind = "wide" if self.width >= WIDE else "narrow"
        head = f'<svg class="{kind}" viewBox="0 0 {self.width} {self.height}" role="img"'
        return f'{head} aria-label="{escape(title)}">{"".join(self._parts)}</svg>'


def figure(title: str, draw: Callable[[Canvas], None], height: int, note: str = "") -> str:
    """A picture with its title, drawn for both widths, and a line of explanation beneath."""
    drawn = []
    for width in (WIDE, NARROW):
        canvas = Canvas(width, height)
        draw(canvas)
        drawn.append(canvas.drawn(title))
    beneath = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(drawn)}{beneath}</figure>"


def width_of(text: str) -> float:
    """About how wide a text of the pictures is."""
    return sum(_IDEOGRAPH if ord(one) > 0x2E7F else _CHARACTER for one in text)


def fitted(text: str, width: float) -> str:
    """`text`, its middle left out where it is wider than that: names differ at their ends."""
    if width_of(text) <= width:
        return text
    kept = max(int(width / _CHARACTER) - 1, 2)
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


_DIRECTIONS = [(1, 0), (-1, 0), (0.7, -0.7), (-0.7, -0.7), (0.7, 0.7), (-0.7, 0.7), (0, -1), (0, 1)]
_DISTANCES = (4, 18, 34, 52, 72)


def free_place(text: str, x: float, y: float, away: float, taken: Sequence[Box], room: Box) -> Box:
    """Where a label finds room beside the point (x, y): near it, and on nothing that is there.

    `away` is the radius of the point, `room` what the label must not leave.
    """
    width = width_of(text)
    options = []
    for distance in _DISTANCES:
        for across, down in _DIRECTIONS:
            near = x + across * (away + distance)
            left = near if across > 0 else near - width if across < 0 else near - width / 2
            top = y + down * (away + distance) - _LINE / 2
            box = Box(left, top, left + width, top + _LINE)
            outside = width * _LINE - box.shared(room)
            covered = sum(box.shared(other) for other in taken)
            options.append((10 * outside + 4 * covered + distance, box))
    return min(options, key=lambda option: option[0])[1]
