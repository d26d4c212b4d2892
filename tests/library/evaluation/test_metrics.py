"""Answer scores against independent references: a table, counts by hand, known values."""

import random
from collections import Counter

import numpy as np
import pytest

from slimtune.evaluation import metrics
from slimtune.evaluation.text import normalise, repeats, words

PARTS = ["北", "京", "爱", "我", "cat", "dog", "42", "Q4", "的", "hello"]


def mixed_texts(count: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(PARTS, k=random_.randint(1, 25))) for _ in range(count)]


def lcs_by_table(left: list[str], right: list[str]) -> int:
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            best = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else best
    return int(table[-1, -1])


def test_words_are_characters_of_chinese_and_words_of_english():
    assert words("Hello，世界！Q4_K_M、３．５公里") == [
        "hello", "世", "界", "q4", "k", "m", "3", "5", "公", "里",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("The answer is 42.", "the answer is  42", True),
        ("ＡＢＣ，１２", "abc,12", True),
        ("北京 上海", "北京上海。", True),
        ("5 公里", "5公里", True),
        ("**Paris**", "Paris", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("答案是-5。", "答案是5", False),
        ("1,2,3", "12,3", False),
        ("a < b", "a > b", False),
        ("50%", "50", False),
        ("", "?", False),
        ("\u22125", "-5", True),
    ],
)
def test_exact_match_forgives_form_and_nothing_else(prediction, reference, same):
    assert (metrics.exact_match(prediction, reference) == 100.0) is same


def test_normalise_keeps_a_text_of_punctuation():
    assert normalise(" ?! ") == "?!"


def test_rouge_l_equals_the_table_on_mixed_pairs():
    for left, right in zip(mixed_texts(200, 1), mixed_texts(200, 2), strict=True):
        a, b = words(left), words(right)
        length = lcs_by_table(a, b)
        assert metrics.longest_common_subsequence(a, b) == length
        assert metrics.rouge_l(left, right) == pytest.approx(200 * length / (len(a) + len(b)))


def test_rouge_n_equals_precision_and_recall_by_hand():
    for left, right in zip(mixed_texts(100, 3), mixed_texts(100, 4), strict=True):
        grams = [Counter(zip(t, t[1:], strict=False)) for t in (words(left), words(right))]
        if not (grams[0] and grams[1]):
            continue
        common = sum(min(count, grams[1][gram]) for gram, count in grams[0].items())
        precision, recall = (common / sum(g.values()) for g in grams)
        f1 = 2 * precision * recall / (precision + recall) if common else 0.0
        assert metrics.rouge_n(left, right, 2) == pytest.approx(100 * f1)


def test_rouge_agrees_with_rouge_score_on_english():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score not installed")
    peer = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    pairs = [
        ("The cat sat on the mat.", "A cat sat there, on a mat"),
        ("one two three", "three two"),
    ]
    for prediction, reference in pairs:
        scores = peer.score(reference, prediction)
        ours = [
            metrics.rouge_n(prediction, reference, 1),
            metrics.rouge_n(prediction, reference, 2),
            metrics.rouge_l(prediction, reference),
        ]
        assert ours == pytest.approx([100 * score.fmeasure for score in scores.values()])


SCORES = [
    metrics.exact_match,
    metrics.rouge_l,
    lambda p, r: metrics.rouge_n(p, r, 1),
    lambda p, r: metrics.rouge_n(p, r, 2),
    lambda p, r: metrics.bleu([p], [r]).score,
    lambda p, r: metrics.chrf([p], [r]).score,
]


@pytest.mark.parametrize("score", SCORES)
def test_identical_is_100_disjoint_is_0_empty_is_0(score):
    for text in ("42", "北京", "我爱北京天安门 and tea", "one two three four five"):
        assert score(text, text) == pytest.approx(100)
        assert score("", text) == 0
    assert score("猫狗鱼", "abcdef ghij") == 0


def test_bleu_and_chrf_say_how_they_were_computed():
    assert "tok:zh" in metrics.bleu(["a"], ["a"]).signature
    assert "nc:6" in metrics.chrf(["a"], ["a"]).signature


def test_interval_covers_the_true_mean_about_95_times_in_100():
    random_ = np.random.default_rng(5)
    inside = 0
    for trial in range(200):
        low, high = metrics.interval(random_.normal(3, 1, 60), resamples=300, seed=trial)
        inside += low <= 3 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_weighted_interval_is_the_unweighted_one_of_equal_rows():
    values = [1.0, 2.0, 5.0, 9.0]
    assert metrics.interval(values, [3.0] * 4) == pytest.approx(metrics.interval(values))


def test_paired_verdict_finds_a_planted_change_and_its_direction():
    random_ = np.random.default_rng(6)
    before = random_.random(200) * 100
    noise = random_.normal(0, 20, 200)
    assert metrics.compare_pairs(before + 5 + noise, before) == "better"
    assert metrics.compare_pairs(before, before + 5 + noise) == "worse"
    lower = metrics.compare_pairs(before + 5 + noise, before, higher_is_better=False)
    assert lower == "worse"
    assert metrics.compare_pairs(before, before) == "no clear change"


def test_paired_verdict_raises_few_false_alarms():
    random_ = np.random.default_rng(7)
    alarms = 0
    for trial in range(300):
        noise = random_.normal(0, 1, (2, 100))
        verdict = metrics.compare_pairs(noise[0], noise[1], resamples=300, seed=trial)
        alarms += verdict != "no clear change"
    assert 0.02 <= alarms / 300 <= 0.09


def test_health_counts_empty_endless_and_looping_answers():
    loop = "我不知道。" * 6
    found = metrics.health(["", "fine", loop, "10000"], [True, True, False, True])
    assert (found.empty, found.without_eos, found.repeating) == (25, 25, 25)


def test_repeats_wants_a_loop_at_the_end():
    assert repeats("so: " + "la la " * 10)
    assert not repeats("la la " * 10 + "and that was the end of the song")
    assert not repeats("1000000000")
