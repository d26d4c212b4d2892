"""The loss while a model was trained: raw and smoothed, validation with its best point, the rate.

The loss axis is logarithmic: a loss that halves goes down by the same length wherever it stands.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from slimtune.report.svg import Axis, Canvas, figure, width_of
from slimtune.report.words import Words

History = Sequence[Mapping[str, float]]
Points = list[tuple[float, float]]

_HEIGHT, _LEFT, _RIGHT, _TOP = 380, 46, 18, 34
_LOSS_BOTTOM, _RATE_TOP, _RATE_BOTTOM = 236, 290, 336
_MOST = 500  # points of a line: more cannot be told apart
_RATE = "learning_rate"
_PARTS = 30  # of a run: the smoothed line looks as far as one to each side


def points_of(history: History, key: str) -> Points:
    """(step, value) of the entries that have a finite one, by steps; of losses the positive ones.

    A logarithm has no place for others.
    """
    found = ((float(one["step"]), float(one[key])) for one in history if key in one)
    least = 0.0 if key == _RATE else math.ulp(0.0)
    return sorted(point for point in found if math.isfinite(point[1]) and point[1] >= least)


def smoothed(points: Points) -> Points:
    """exp of the mean of ln x over the h neighbours to each side, h a thirtieth of the run.

    Towards the ends h shrinks on both sides at once. Unlike an exponential mean it does not lag
    behind a loss that falls, and on a logarithmic axis a straight line stays one.
    """
    reach = len(points) // _PARTS
    sums = [0.0, *accumulate(math.log(value) for _, value in points)]
    found = []
    for place, (step, _) in enumerate(points):
        half = min(reach, place, len(points) - 1 - place)
        total = sums[place + half + 1] - sums[place - half]
        found.append((step, math.exp(total / (2 * half + 1))))
    return found


def best_point(history: History) -> tuple[float, float] | None:
    """(step, loss) of the lowest validation; None where nothing was validated."""
    return min(points_of(history, "eval_loss"), key=lambda point: point[1], default=None)


def loss_picture(label: str, history: History, words: Words) -> str:
    """The figure; nothing where no loss was logged."""
    training, validation = points_of(history, "loss"), points_of(history, "eval_loss")
    if not training and not validation:
        return ""
    rates = points_of(history, _RATE)

    def draw(canvas: Canvas) -> None:
        _draw(canvas, training, validation, rates, words)

    height = _HEIGHT if len(rates) > 1 else _RATE_TOP
    note = words.taught if any("kd" in one for one in history) else ""
    return figure(words.loss_title.format(label=label), draw, height, note)


def _draw(
    canvas: Canvas, training: Points, validation: Points, rates: Points, words: Words
) -> None:
    across, down = _axes(canvas, training, validation)
    bottom = [f"{step:,.0f}" for step in across.ticks(canvas.columns)]
    canvas.grid(across, down, bottom, [f"{loss:.3g}" for loss in down.ticks(6)])
    _legend(canvas, bool(training), bool(validation), words)
    for kind, points in (("raw", training), ("smooth", smoothed(training)), ("valid", validation)):
        drawn = [(across.at(step), down.at(loss)) for step, loss in _thinned(points)]
        canvas.path(drawn, f"curve {kind}")
        for x, y in drawn if kind == "valid" and len(drawn) < 60 else ():
            canvas.dot(x, y, 2.5, "dot valid")
    if validation:
        _mark_best(canvas, across, down, validation, words)
    if len(rates) > 1:
        _draw_rates(canvas, across, rates, words)


def _axes(canvas: Canvas, training: Points, validation: Points) -> tuple[Axis, Axis]:
    steps = [step for step, _ in training + validation]
    losses = [loss for _, loss in training + validation]
    first, last = min(steps), max(steps)
    low, high = min(losses) / 1.08, max(losses) * 1.08
    return (
        Axis(first, max(last, first + 1), _LEFT, canvas.width - _RIGHT),
        Axis(low, high, _LOSS_BOTTOM, _TOP, log=True),
    )


def _legend(canvas: Canvas, trained: bool, validated: bool, words: Words) -> None:
    x = float(_LEFT)
    shown = [("raw", words.raw), ("smooth", words.smooth)] if trained else []
    shown += [("valid", words.validation)] if validated else []
    for kind, word in shown:
        canvas.path([(x, 12), (x + 18, 12)], f"curve {kind}")
        canvas.text(x + 23, 16, word, kind="tick")
        x += 23 + width_of(word) + 6


def _mark_best(canvas: Canvas, across: Axis, down: Axis, validation: Points, words: Words) -> None:
    step, loss = min(validation, key=lambda point: point[1])
    x, y = across.at(step), down.at(loss)
    canvas.path([(x, y - 6), (x, _TOP)], "leader")
    canvas.dot(x, y, 6, "ring")
    right = x > (across.start + across.end) / 2
    text = words.best.format(step=step, loss=loss)
    canvas.text(
        x - 6 if right else x + 6, _TOP + 12, text, "end" if right else "start", "name halo"
    )


def _draw_rates(canvas: Canvas, across: Axis, rates: Points, words: Words) -> None:
    """A strip of its own under the loss: two scales in one frame are read for each other."""
    top = max(rate for _, rate in rates)
    down = Axis(0.0, top, _RATE_BOTTOM, _RATE_TOP)
    canvas.text(_LEFT, _RATE_TOP - 12, words.rate.format(top=top), kind="tick")
    canvas.path([(across.start, _RATE_BOTTOM), (across.end, _RATE_BOTTOM)], "rule")
    drawn = [(across.at(step), down.at(rate)) for step, rate in _thinned(rates)]
    canvas.path(drawn, "curve rate")
    canvas.text(across.end, _RATE_BOTTOM + 19, words.step_axis, "end", "soft")


def _thinned(points: Points) -> Iterable[tuple[float, float]]:
    stride = -(-len(points) // _MOST) or 1
    return [*points[:-1:stride], *points[-1:]]
