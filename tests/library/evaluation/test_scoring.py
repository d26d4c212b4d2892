"""Measures and verdicts of made-up outcomes, where the truth is known."""

import math
import random
from dataclasses import replace

import pytest

from slimtune.evaluation.origins import Origin
from slimtune.evaluation.scoring import measure, row_scores, signatures
from slimtune.inference.answers import AnswerLoss, Cost, Generation, Outcome
from slimtune.inference.questions import Asked, Candidate, Question
from slimtune.report.measure_table import names_of, names_over

QUESTIONS = [
    Question(f"r{n}", ({"role": "user", "content": f"{n}?"},), (f"答案{n}",)) for n in range(60)
]
COST = Cost(1, 1, 0.1, 1.0, 1.0, 1.0, 1)


def outcome(label: str, right: int, nats_per_token: float, tokens: int = 4) -> Outcome:
    """Answers `right` of the questions correctly, at about `nats_per_token`."""
    chance = random.Random(3)
    texts = [q.reference if n < right else "不知道" for n, q in enumerate(QUESTIONS)]
    nats = [tokens * (nats_per_token + chance.uniform(-0.2, 0.2)) for _ in texts]
    losses = [AnswerLoss(one, tokens, tokens // 2) for one in nats]
    generations = [Generation(text, [1, 2, 3], True) for text in texts]
    asked = Asked(f"{tokens} tokens an answer", ())
    return Outcome(Candidate(label, label), generations, losses, asked, COST)


def measured(candidate: Outcome, baseline: Outcome) -> dict:
    both = [baseline, candidate]
    return measure(both, [row_scores(one, QUESTIONS) for one in both], QUESTIONS)[1]


def test_more_right_answers_and_fewer_bits_are_better():
    found = measured(outcome("b", 45, 1.0), outcome("a", 15, 2.0))
    assert found["exact_match"]["score"] == 75
    assert found["exact_match"]["verdict"] == found["bits_per_byte"]["verdict"] == "better"
    assert found["exact_match"]["low"] < 75 < found["exact_match"]["high"]


def test_fewer_right_answers_and_more_bits_are_worse():
    found = measured(outcome("b", 15, 2.0), outcome("a", 45, 1.0))
    assert found["exact_match"]["verdict"] == found["bits_per_byte"]["verdict"] == "worse"


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    """Half the tokens at twice the nats each: perplexity differs, bits per byte do not."""
    coarse, fine = outcome("coarse", 9, 2.0, tokens=2), outcome("fine", 9, 1.0, tokens=4)
    size = sum(len(question.reference.encode()) for question in QUESTIONS)
    bits = [measured(one, one)["bits_per_byte"]["score"] for one in (coarse, fine)]
    for score, one in zip(bits, (coarse, fine), strict=True):
        assert score == pytest.approx(sum(loss.nats for loss in one.losses) / math.log(2) / size)
    assert bits[0] == pytest.approx(bits[1], rel=0.05)
    found = measured(coarse, fine)
    assert found["perplexity"] is None and found["token_accuracy"] is None
    assert found["bits_per_byte"]["verdict"] in ("no clear change", "better", "worse")


def test_rows_whose_answer_did_not_fit_are_left_out_of_the_bits():
    full, cut = outcome("full", 9, 1.0), outcome("cut", 9, 1.0)
    cut.losses[0] = AnswerLoss(0.0, 0)
    assert measured(cut, full)["bits_per_byte"]["score"] == pytest.approx(
        measured(full, cut)["bits_per_byte"]["score"]
    )


def test_every_measure_has_its_interval_and_verdict():
    found = measured(outcome("b", 45, 1.0), outcome("a", 15, 2.0))
    for name in set(names_of("quality")) - set(names_over("divergences")):
        judged = found[name]
        assert judged["low"] <= judged["score"] <= judged["high"], name
        assert judged["verdict"] in ("better", "worse", "no clear change"), name
    assert found["perplexity"]["verdict"] == "better"
    assert found["token_accuracy"]["score"] == 50


def apart(one: Outcome, nats: float, agreed: int, compared: int = 4) -> Outcome:
    """The outcome with a divergence from its original of about `nats` a token."""
    chance = random.Random(5)
    told = {"agreed": agreed, "compared": compared}
    one.losses[:] = [
        replace(loss, divergence=compared * nats * chance.uniform(0.5, 1.5), **told)
        for loss in one.losses
    ]
    return one


def judged(origins: dict[str, Origin], *outcomes: Outcome) -> dict[str, dict]:
    scores = [row_scores(one, QUESTIONS) for one in outcomes]
    found = measure(outcomes, scores, QUESTIONS, origins)
    return {one["label"]: one for one in found}


def test_an_agreement_at_every_token_still_has_an_interval():
    """And a divergence of 0 is 0: nats have no bound from which Wilson's could be told."""
    found = judged({}, outcome("base", 30, 1.0), apart(outcome("same", 30, 1.0), 0.0, 4))["same"]
    low, high = (found["first_choice_agreement"][end] for end in ("low", "high"))
    assert 80 < low < 100 and high == pytest.approx(100)
    assert [found["kl_divergence"][end] for end in ("score", "low", "high")] == [0, 0, 0]


def test_divergence_and_agreement_are_means_over_the_compared_tokens():
    one = outcome("q4", 30, 1.0)
    one.losses[0] = replace(one.losses[0], divergence=6.0, agreed=1, compared=3)
    one.losses[1] = replace(one.losses[1], divergence=0.5, agreed=1, compared=1)
    found = judged({}, outcome("base", 30, 1.0), one)
    assert found["q4"]["kl_divergence"]["score"] == pytest.approx(6.5 / 4)
    assert found["q4"]["first_choice_agreement"]["score"] == pytest.approx(50)
    assert (found["q4"]["compared_rows"], found["q4"]["compared_tokens"]) == (2, 4)
    assert found["base"]["kl_divergence"] is found["base"]["first_choice_agreement"] is None


def test_each_is_judged_against_the_one_it_was_made_from():
    """Distillation wins back what pruning lost, and both are still worse than the first."""
    origins = {"pruned": Origin("merged", "merged"), "distilled": Origin("pruned", "merged")}
    merged, pruned = outcome("merged", 58, 1.0), apart(outcome("pruned", 20, 2.0), 0.5, 2)
    distilled = apart(outcome("distilled", 45, 1.3), 0.1, 3)
    found = judged(origins, merged, pruned, distilled)
    assert found["merged"]["made_from"] is None and found["distilled"]["made_from"] == "pruned"
    assert found["distilled"]["original"] == "merged"
    for name in ("exact_match", "bits_per_byte"):
        assert found["merged"][name]["verdict_made_from"] is None
        assert found["pruned"][name]["verdict_made_from"] == "worse"
        assert found["distilled"][name]["verdict_made_from"] == "better"
        assert found["distilled"][name]["verdict"] == "worse"


def test_a_divergence_is_judged_only_beside_one_from_the_same_original():
    origins = {"pruned": Origin("merged", "merged"), "distilled": Origin("pruned", "merged")}
    origins |= {"merged": Origin("base", "base"), "stranger": Origin("pruned", "other")}
    outcomes = [outcome("base", 9, 3.0), apart(outcome("merged", 58, 1.0), 3.0, 1)]
    outcomes += [apart(outcome("pruned", 20, 2.0), 0.5, 2), apart(outcome("distilled", 45, 1.3),
                 0.1, 3), apart(outcome("stranger", 45, 1.3), 0.1, 3)]  # fmt: skip
    found = judged(origins, *outcomes)
    for name, wanted in (("kl_divergence", "better"), ("first_choice_agreement", "better")):
        assert found["distilled"][name]["verdict_made_from"] == wanted
        assert found["pruned"][name]["verdict_made_from"] is None  # merged is the original itself
        assert found["stranger"][name]["verdict_made_from"] is None
        assert {one[name]["verdict"] for one in list(found.values())[1:]} == {None}


def test_perplexity_weighs_by_tokens():
    uneven = outcome("a", 9, 1.0)
    uneven.losses[:] = [AnswerLoss(math.log(2) * 9, 9), *[AnswerLoss(math.log(8), 1)] * 59]
    expected = math.exp((math.log(2) * 9 + math.log(8) * 59) / 68)
    assert measured(uneven, uneven)["perplexity"]["score"] == pytest.approx(expected)


def test_the_best_of_several_references_counts():
    asked = Question("r", ({"role": "user", "content": "?"},), ("a long walk", "Paris", "巴黎"))
    said = Outcome(
        Candidate("m", "m"),
        [Generation("巴黎。", [1, 2], True)],
        [AnswerLoss(1.0, 1)],
        Asked("", ()),
        COST,
    )
    assert set(row_scores(said, [asked])[0].values()) == {100.0}


def test_a_row_names_its_pattern():
    asked = Question("r", ({"role": "user", "content": "?"},), ("so #### 7",), "gsm8k")
    said = Outcome(
        Candidate("m", "m"),
        [Generation("#### 7", [1, 2], True)],
        [AnswerLoss(1.0, 1)],
        Asked("", ()),
        COST,
    )
    assert row_scores(said, [asked])[0]["exact_match"] == 100


def test_signatures_are_sacrebleus():
    found = signatures(QUESTIONS)
    assert "tok:zh" in found["bleu"] and "nc:6" in found["chrf"] and "nrefs:1" in found["bleu"]
