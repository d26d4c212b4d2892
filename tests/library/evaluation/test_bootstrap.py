"""Intervals and verdicts where the truth is known: planted changes are found, chance is not."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from slimtune.evaluation import bootstrap
from slimtune.evaluation.bootstrap import corpus, mean, verdict, wilson


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    random_ = np.random.default_rng(5)
    inside = 0
    for trial in range(200):
        low, high = mean(random_.normal(3, 1, 60), resamples=300, seed=trial).interval
        inside += low <= 3 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_weighted_means_are_those_of_repeated_rows():
    values = [1.0, 2.0, 5.0, 9.0]
    assert mean(values, [3.0] * 4).interval == pytest.approx(mean(values).interval)
    assert mean([1.0, 4.0], [3.0, 1.0]).score == pytest.approx(7 / 4)


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (3, 10), (10, 10), (339, 340)])
def test_the_interval_of_right_and_wrong_rows_is_wilsons(right, rows):
    """Its ends are the rates p at which the rows would be 1.96 standard errors of p away."""
    low, high = mean([100.0] * right + [0.0] * (rows - right), percent=True).interval
    quantile = NormalDist().inv_cdf(0.975)
    for rate in (low / 100, high / 100):
        away = abs(right / rows - rate)
        assert away == pytest.approx(quantile * math.sqrt(rate * (1 - rate) / rows), abs=1e-6)
    assert 0 <= low < high <= 100
    opposite = mean([0.0] * right + [100.0] * (rows - right), percent=True).interval
    assert opposite == pytest.approx((100 - high, 100 - low))


def test_weighted_rows_count_as_the_equal_ones_that_swing_as_much():
    assert mean([0.0] * 10, [7.0] * 10, percent=True).interval == pytest.approx(wilson(0, 10))
    narrow, wide = (mean([0.0] * 10, [1.0] * 9 + [w], percent=True).interval for w in (1.0, 9.0))
    assert wide[1] > narrow[1]


def test_what_is_no_percentage_has_the_interval_of_its_draws():
    assert mean([0.0] * 10).interval == (0, 0)  # nats: no bound that Wilson could know
    shares = [0.0, 50.0, 100.0] * 10
    assert mean(shares, percent=True).interval == mean(shares).interval


@pytest.mark.parametrize("metric", [BLEU(tokenize="zh", effective_order=True), CHRF()])
def test_a_corpus_that_no_row_touches_has_an_interval_too(metric):
    found = corpus(metric, ["xx"] * 10, [["天"]] * 10)
    assert found.score == 0 and found.interval == pytest.approx(wilson(0, 10))
    perfect = corpus(metric, ["the cat sat on the mat"] * 10, [["the cat sat on the mat"]] * 10)
    assert perfect.score == 100 and perfect.interval == pytest.approx(wilson(100, 10))


def right_or_wrong(random_: np.random.Generator, rate: float, rows: int) -> np.ndarray:
    return 100.0 * (random_.random(rows) < rate)


def alarms(draw, trials: int = 300) -> float:
    """The share of trials in which two systems that are alike seem to differ."""
    random_ = np.random.default_rng(7)
    found = 0
    for trial in range(trials):
        one, other = (mean(draw(random_), resamples=400, seed=trial) for _ in range(2))
        found += verdict(one, other) != "no clear change"
    return found / trials


@pytest.mark.parametrize(
    "draw",
    [lambda r: r.normal(50, 20, 200), lambda r: right_or_wrong(r, 0.4, 200)],
    ids=["scores", "right or wrong"],
)
def test_alike_systems_raise_3_to_7_false_alarms_in_100(draw):
    assert 0.03 <= alarms(draw) <= 0.07


def test_one_system_never_differs_from_itself():
    values = np.random.default_rng(1).normal(50, 20, 200)
    assert verdict(mean(values), mean(values)) == "no clear change"


@pytest.mark.parametrize("seed", range(5))
def test_five_planted_points_at_200_rows_are_found_with_their_direction(seed):
    random_ = np.random.default_rng(seed)
    before = random_.random(200) * 100
    after = before + 5 + random_.normal(0, 20, 200)
    assert verdict(mean(after), mean(before)) == "better"
    assert verdict(mean(before), mean(after)) == "worse"
    assert verdict(mean(after), mean(before), higher_is_better=False) == "worse"


def test_pairing_finds_what_two_separate_intervals_would_hide():
    random_ = np.random.default_rng(2)
    hard = random_.normal(50, 30, 200)
    one, other = mean(hard + 2 + random_.normal(0, 5, 200)), mean(hard)
    assert one.interval[0] < other.interval[1]
    assert verdict(one, other) == "better"


PREDICTIONS = ["the cat sat on the mat", "北京是中国的首都", "no idea at all", "四十二"] * 5
REFERENCES = [
    ["the cat sat on a mat", "a cat sat on the mat"],
    ["北京是首都"],
    ["forty two"],
    ["42", "四十二"],
] * 5


@pytest.mark.parametrize("metric", [BLEU(tokenize="zh", effective_order=True), CHRF()])
def test_corpus_scores_are_sacrebleus_with_any_number_of_references(metric):
    streams = [[one[0] for one in REFERENCES], [(*one, None)[1] for one in REFERENCES]]
    found = corpus(metric, PREDICTIONS, REFERENCES)
    assert found.score == pytest.approx(metric.corpus_score(PREDICTIONS, streams).score)
    low, high = found.interval
    assert low < found.score < high


def test_a_draw_of_a_corpus_is_the_score_of_the_drawn_rows():
    found = corpus(CHRF(), PREDICTIONS, REFERENCES, resamples=3, seed=9)
    ((rows,),) = bootstrap._draws(len(PREDICTIONS), 1, 9)
    drawn = corpus(CHRF(), [PREDICTIONS[r] for r in rows], [REFERENCES[r] for r in rows])
    assert found.draws[0] == pytest.approx(drawn.score)


@pytest.mark.parametrize("block", [1, 100, 1000])
def test_draws_are_the_same_in_any_blocks(block, monkeypatch):
    values = np.random.default_rng(3).normal(50, 20, 37)
    whole = mean(values, resamples=50)
    monkeypatch.setattr(bootstrap, "_BLOCK", block)
    assert np.array_equal(mean(values, resamples=50).draws, whole.draws)
    random_ = np.random.default_rng(bootstrap.SEED)  # and those of one after another
    alone = [values[random_.integers(37, size=37)].mean() for _ in range(50)]
    assert whole.draws == pytest.approx(alone)


def test_a_hopeless_model_has_a_finite_perplexity():
    found = mean([1e6, 1e6]).exp()
    assert math.isfinite(found.score) and all(map(math.isfinite, found.interval))


@pytest.mark.parametrize("higher", [True, False])
def test_what_is_no_number_is_worse_than_any(higher):
    whole, broken = mean([1.0, 2.0, 3.0]), mean([1.0, float("nan"), 3.0])
    assert verdict(broken, whole, higher_is_better=higher) == "worse"
    assert verdict(whole, broken, higher_is_better=higher) == "better"
    assert verdict(broken, broken, higher_is_better=higher) == "no clear change"
