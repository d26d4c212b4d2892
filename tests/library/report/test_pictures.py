"""Pictures: round ticks, labels that cover nothing, and every mark where its value is."""

import math
import re
from itertools import combinations
from random import Random

import pytest
from tiny_reports import metrics_of_three, model

from slimtune.report.bars import measure_bars, step_bars
from slimtune.report.loss_picture import best_point, loss_picture, points_of, smoothed
from slimtune.report.size_picture import size_picture
from slimtune.report.standing import steps
from slimtune.report.svg import Axis, Box, Canvas, fitted, free_place, width_of
from slimtune.report.words import LANGUAGES

WORDS = LANGUAGES["en"]


def dots(svg: str, kind: str) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each dot of a kind."""
    found = re.findall(rf'<circle class="{kind}" cx="(.*?)" cy="(.*?)" r="(.*?)"', svg)
    return [tuple(map(float, one)) for one in found]


def wide(figure: str) -> str:
    return re.search(r'<svg class="wide".*?</svg>', figure)[0]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(0.05, 7.2), (1.2, 1.9), (3e-3, 4.0), (1.3e6, 7e6), (2e8, 7e10), (88, 92.1)]
)
def test_ticks_are_few_round_and_on_the_axis(low, high, log):
    axis = Axis(low, high, 0, 100, log)
    for most in (5, 6, 9):
        found = axis.ticks(most)
        assert 2 <= len(found) <= most + 1 and found == sorted(found)
        assert all(low <= one <= high for one in found)
        assert all(len(f"{one:.12g}".strip("0.").replace(".", "")) <= 8 for one in found)


def test_a_logarithmic_axis_gives_every_doubling_the_same_way():
    axis = Axis(1.0, 16.0, 10, 90, log=True)
    places = [axis.at(one) for one in (1, 2, 4, 8, 16)]
    assert places == pytest.approx([10, 30, 50, 70, 90])


def test_labels_keep_off_dots_and_each_other_where_there_is_room():
    random, room = Random(3), Box(0, 0, 760, 400)
    points = [(random.uniform(50, 700), random.uniform(30, 370)) for _ in range(9)]
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for number, (x, y) in enumerate(points):
        box = free_place(f"model-{number}", x, y, 6, taken, room)
        assert box.left >= 0 and box.right <= 760 and box.top >= 0 and box.bottom <= 400
        taken.append(box)
    assert all(a.shared(b) == 0 for a, b in combinations(taken, 2))


def test_a_long_name_keeps_both_ends():
    name = "slimtune-sample-of-a-very-long-name-Q4_K_M"
    short = fitted(name, 140)
    assert short.startswith("slimtune") and short.endswith("Q4_K_M") and "…" in short
    assert width_of(short) <= 140 and fitted("base", 140) == "base"


def test_a_canvas_escapes_its_texts():
    canvas = Canvas(760, 100)
    canvas.text(1, 1, "<script>&")
    assert "&lt;script&gt;&amp;" in canvas.drawn('"><script>')
    assert "<script" not in canvas.drawn('"><script>')


def test_each_model_is_a_dot_whose_area_is_its_speed():
    models = metrics_of_three()["models"]
    models[1]["cost"] = {**models[1]["cost"], "generated_tokens_per_second": 400.0}
    drawn = wide(size_picture(models, WORDS))
    (base,), (other,) = dots(drawn, "dot first"), dots(drawn, "dot other") or [(0, 0, 0)]
    best = dots(drawn, "dot best")
    assert len(best) == 2 and other == (0, 0, 0)  # both are on the front
    small, large = sorted(best)
    assert small[0] < base[0] < large[0]  # 3, 10 and 10.5 MB
    assert large[1] < small[1] < base[1]  # 84, 82.5 and 2 %
    assert (large[2] / small[2]) ** 2 == pytest.approx(4, rel=0.1)


def test_a_first_model_far_below_does_not_press_the_others_together():
    models = metrics_of_three()["models"]
    drawn = wide(size_picture(models, WORDS))
    low, high = dots(drawn, "dot best")
    assert abs(low[1] - high[1]) > 40  # 1.5 points, of 390 pixels
    assert "↓ base 2.0" in drawn
    near = [model("base", 80.0, 10_000_000), *models[1:]]
    assert "↓" not in wide(size_picture(near, WORDS))


def test_a_model_of_unknown_size_is_named_and_not_drawn():
    models = [*metrics_of_three()["models"], model("served", 90.0, None)]
    figure = size_picture(models, WORDS)
    assert "size is not known: served" in figure
    assert sum(len(dots(wide(figure), f"dot {kind}")) for kind in ("first", "best", "other")) == 3
    assert size_picture(models[-1:], WORDS) == ""


def losses(points: list) -> list[float]:
    return [loss for _, loss in points]


def test_smoothing_neither_lags_behind_a_fall_nor_keeps_the_noise():
    falling = [(float(step), math.exp(-step / 40)) for step in range(300)]
    assert losses(smoothed(falling)) == pytest.approx(losses(falling))
    random = Random(1)
    noisy = [(step, value * math.exp(random.gauss(0, 0.3))) for step, value in falling]
    away = [
        math.log(found / true)
        for (_, found), (_, true) in zip(smoothed(noisy), falling, strict=True)
    ]
    assert sum(map(abs, away[20:-20])) / 260 < 0.1
    assert losses(smoothed(falling[:5])) == pytest.approx(losses(falling[:5]))


def test_the_best_validation_is_marked_and_what_no_logarithm_has_is_left_out():
    history = [
        {"step": s, "loss": 2.0 / (s + 1), "learning_rate": 0.1 - s / 100} for s in range(10)
    ]
    history += [{"step": 3, "eval_loss": 0.9}, {"step": 6, "eval_loss": 0.7}]
    history += [{"step": 9, "eval_loss": 0.8}, {"step": 10, "loss": 0.0}]
    history += [{"step": 11, "loss": math.nan}, {"step": 12, "eval_loss": math.inf}]
    assert best_point(history) == (6, 0.7)
    assert [step for step, _ in points_of(history, "loss")] == list(range(10))
    drawn = wide(loss_picture("tuned", history, WORDS))
    (ring,), valid = dots(drawn, "ring"), dots(drawn, "dot valid")
    assert ring[:2] == valid[1][:2] == max(valid, key=lambda dot: dot[1])[:2]
    assert "best: step 6, 0.7000" in drawn and "learning rate, up to 0.1" in drawn
    assert all(f'class="curve {kind}"' in drawn for kind in ("raw", "smooth", "valid", "rate"))


def test_a_loss_that_is_part_a_teachers_says_so():
    alone, taught = [{"step": 1, "loss": 2.0}], [{"step": 1, "loss": 2.0, "kd": 1.0, "ce": 3.0}]
    assert WORDS.taught in loss_picture("x", taught, WORDS)
    assert WORDS.taught not in loss_picture("x", alone, WORDS)


@pytest.mark.parametrize("history", [[], [{"step": 1, "grad_norm": 2.0}]])
def test_no_loss_is_no_picture(history):
    assert loss_picture("x", history, WORDS) == "" and best_point(history) is None


def test_one_step_and_a_long_run_are_drawn():
    assert "<svg" in loss_picture("x", [{"step": 1, "loss": 2.0}], WORDS)
    long = [{"step": s, "loss": 1.0 + s % 7, "learning_rate": 1e-3} for s in range(100_000)]
    assert len(loss_picture("x", long, WORDS)) < 100_000


def bars(figure: str) -> list[tuple[str, float, float]]:
    """(class, start, width in percent) of each bar."""
    found = re.findall(r'<rect class="bar (\w+)" x="([\d.]+)%" width="([\d.]+)%"', figure)
    return [(kind, float(x), float(width)) for kind, x, width in found]


def test_a_step_is_a_bar_from_its_source_to_its_own_score():
    models = metrics_of_three()["models"]
    models[2]["exact_match"] = {**models[2]["exact_match"], "verdict_made_from": "worse"}
    models[1]["made_from"], models[2]["made_from"] = "base", "tuned"
    found = bars(step_bars(models, steps(models, {}), WORDS))
    at = {score: 100 * (score - -1.0) / (87.0 - -1.0) for score in (2.0, 82.5, 84.0)}
    (_, start, width), up, down = found
    assert (start, width) == pytest.approx((0, at[2.0]), abs=0.01)
    assert up[0] == "better" and up[1:] == pytest.approx((at[2.0], at[84.0] - at[2.0]), abs=0.01)
    assert down[0] == "worse"
    assert down[1:] == pytest.approx((at[82.5], at[84.0] - at[82.5]), abs=0.01)


def test_measures_are_bars_from_zero_and_a_dash_is_none():
    models = metrics_of_three()["models"]
    models[1]["rouge_l"] = None
    found = bars(measure_bars(models, "rouge_l", WORDS))
    assert [kind for kind, *_ in found] == ["plain", "plain"]
    assert [start for _, start, _ in found] == [0, 0]
    assert found[1][2] / found[0][2] == pytest.approx(82.5 / 2.0, rel=0.01)
    assert measure_bars(models[1:2], "rouge_l", WORDS) == ""
    models[0]["rouge_l"] = dict.fromkeys(("score", "low", "high"), math.nan)
    assert len(bars(measure_bars(models, "rouge_l", WORDS))) == 1
