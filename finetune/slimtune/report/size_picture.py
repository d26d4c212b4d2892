"""Size against quality: a dot for each model, a line through the best for their size.

The size axis is logarithmic: half the size is the same way to the left everywhere. The area of a
dot is its speed, the upright line through it the 95 % interval.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from slimtune.console import size
from slimtune.report.measure_table import MEASURES, value_of
from slimtune.report.standing import Model, front, leading, score, sized
from slimtune.report.svg import (
    NARROW,
    Axis,
    Box,
    Canvas,
    figure,
    fitted,
    free_place,
)
from slimtune.report.words import Words

_HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 420, 40, 48, 26, 18
_RADIUS, _LEAST = 11.0, 4.5  # pixels: of the fastest dot, and of one that could not be seen else
_APART = 8  # pixels between two dots: a hundredth of the picture
_THIN = 0.4  # half a line's width, as little as a name on it costs
_SPEED = "generated_tokens_per_second"


class _Dot(NamedTuple):
    """A model at its place: pixels of its middle and of the ends of its interval."""

    label: str
    x: float
    y: float
    high: float
    low: float
    radius: float
    kind: str


def size_picture(models: Sequence[Model], words: Words) -> str:
    """The figure; nothing where fewer than two models have a size."""
    shown = sized(models)
    if len(shown) < 2:
        return ""
    name = leading(models)
    title = words.size_title.format(measure=MEASURES[name].label(words.language).title)
    left_out = [one["label"] for one in models if one not in shown]
    note = words.size_note
    if left_out:
        note += " " + words.unsized.format(labels=", ".join(left_out))

    def draw(canvas: Canvas) -> None:
        _draw(canvas, models, shown, name, words)

    return figure(title, draw, _HEIGHT, note)


def _draw(
    canvas: Canvas, models: Sequence[Model], shown: Sequence[Model], name: str, words: Words
) -> None:
    across, down = _axes(canvas, shown, name)
    marks = [size(one).replace(".0 ", " ") for one in across.ticks(canvas.columns)]
    canvas.grid(across, down, marks, [f"{one:g}" for one in down.ticks(6)])
    canvas.text(4, 14, MEASURES[name].title(words.language), kind="soft")
    canvas.text(across.end, _HEIGHT - 6, words.size_axis, "end", "soft")
    stairs = _stairs([_place(one, name, across, down) for one in front(models)], across)
    canvas.path(stairs, "front")
    fastest = max(value_of(one, _SPEED) or 0 for one in shown)
    dots = _apart([_dot(one, name, across, down, models, fastest) for one in shown])
    for dot in dots:
        canvas.path([(dot.x, dot.high), (dot.x, dot.low)], "whisker")
    for dot in sorted(dots, key=lambda one: -one.radius):  # a small one stays visible on a large
        canvas.dot(dot.x, dot.y, dot.radius, dot.kind)
    _label(canvas, dots, stairs, Box(across.start, _TOP - 8, canvas.width - 2, down.start))


def _axes(canvas: Canvas, shown: Sequence[Model], name: str) -> tuple[Axis, Axis]:
    sizes = [float(value_of(one, "bytes_on_disk") or 0) for one in shown]
    low, high = _range(shown, name)
    room = max(high - low, 1.0) * 0.05
    left, right = min(sizes) / 1.25, max(sizes) * 1.25
    return (
        Axis(left, right, _LEFT, canvas.width - _RIGHT, log=True),
        Axis(max(low - room, 0.0), min(high + room, 100.0), _HEIGHT - _BOTTOM, _TOP),
    )


def _range(shown: Sequence[Model], name: str) -> tuple[float, float]:
    """From the lowest to the highest interval, less the first model where it is far below the rest.

    A base that knows nothing of the task, at 0 %, would press all others into one line.
    """
    ends = [[one[name]["low"], one[name]["high"]] for one in shown]
    whole, rest = (sum(some, []) for some in (ends, ends[1:]))
    low, high = min(rest), max(rest)
    below = low - max(ends[0])
    return (low, high) if below > high - low else (min(whole), max(whole))


def _place(model: Model, name: str, across: Axis, down: Axis) -> tuple[float, float]:
    bytes_on_disk = value_of(model, "bytes_on_disk") or across.low
    return across.at(bytes_on_disk), down.at(max(score(model, name), down.low))


def _dot(
    model: Model, name: str, across: Axis, down: Axis, models: Sequence[Model], fastest: float
) -> _Dot:
    x, y = _place(model, name, across, down)
    speed = value_of(model, _SPEED) or 0
    radius = max(_RADIUS * (speed / fastest) ** 0.5, _LEAST) if fastest else _LEAST
    kind = "first" if model is models[0] else "best" if model in front(models) else "other"
    ends = (down.at(max(model[name][end], down.low)) for end in ("high", "low"))
    shown = MEASURES[name].written(score(model, name))
    below = score(model, name) < down.low
    label = f"↓ {model['label']} {shown}" if below else model["label"]
    return _Dot(label, x, y, *ends, radius, f"dot {kind}")


def _apart(dots: Sequence[_Dot]) -> list[_Dot]:
    """Dots that would stand in one column, side by side: whose interval is whose can be seen."""
    found: list[_Dot] = []
    for dot in sorted(dots, key=lambda one: one.x):
        beside = found[-1].x + _APART if found else dot.x
        close = bool(found) and dot.x < beside
        found.append(dot._replace(x=beside) if close else dot)
    return found


def _stairs(places: Sequence[tuple[float, float]], across: Axis) -> list[tuple[float, float]]:
    """Stairs through the best for their size: at a size that is not there, the next smaller one."""
    stairs: list[tuple[float, float]] = []
    for x, y in places:
        stairs += [(x, stairs[-1][1])] if stairs else []
        stairs.append((x, y))
    return [*stairs, (across.end, stairs[-1][1])]


def _label(
    canvas: Canvas, dots: Sequence[_Dot], stairs: Sequence[tuple[float, float]], room: Box
) -> None:
    """A name beside each dot, on no other dot, name or interval if there is a place for it."""
    taken = [Box(d.x - d.radius, d.y - d.radius, d.x + d.radius, d.y + d.radius) for d in dots]
    taken += [Box(dot.x - _THIN, dot.high, dot.x + _THIN, dot.low) for dot in dots]
    taken += [
        Box(a[0], min(a[1], b[1]) - _THIN, b[0], max(a[1], b[1]) + _THIN)
        for a, b in pairwise(stairs)
    ]
    longest = 100 if canvas.width == NARROW else 240
    for dot in sorted(dots, key=lambda one: one.x):
        text = fitted(dot.label, longest)
        box = free_place(text, dot.x, dot.y, dot.radius, taken, room)
        taken.append(box)
        end = min(max(dot.x, box.left), box.right), min(max(dot.y, box.top), box.bottom)
        if abs(end[0] - dot.x) + abs(end[1] - dot.y) > dot.radius + 14:
            canvas.path([(dot.x, dot.y), end], "leader")
        # Widths are guessed: what is left of its dot ends there, however wide it is.
        left, right = box.right < dot.x, box.left > dot.x
        anchor = "end" if left else "start" if right else "middle"
        x = box.right if left else box.left if right else (box.left + box.right) / 2
        canvas.text(x, box.bottom - 3.5, text, anchor, "name halo")
