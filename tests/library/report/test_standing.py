"""Who is best, who is best for its size, and which step came from where."""

import pytest
from tiny_reports import metrics_of_three, model, record

from slimtune.report.standing import best, front, leading, smallest, steps


@pytest.fixture
def models() -> list[dict]:
    return metrics_of_three()["models"]


def labels(models: list) -> list[str]:
    return [one["label"] for one in models]


def test_exact_match_decides_and_overlap_where_nobody_is_ever_right(models):
    assert leading(models) == "exact_match" and best(models)["label"] == "tuned"
    for one in models:
        one["exact_match"] = {**one["exact_match"], "score": 0.0}
    models[2]["rouge_l"] = {**models[2]["rouge_l"], "score": 99.0}
    assert leading(models) == "rouge_l" and best(models)["label"] == "tuned-Q4_K_M"


def test_the_first_is_best_only_where_it_is_alone(models):
    assert best(models[:1])["label"] == "base"
    models[0]["exact_match"] = {**models[0]["exact_match"], "score": 99.0}
    assert best(models)["label"] == "tuned"


def test_the_front_is_of_those_that_no_smaller_one_equals():
    found = [model("a", 50, 100), model("b", 60, 200), model("c", 60, 300), model("d", 55, 200)]
    found += [model("e", 40, 400), model("f", 61, 500)]
    assert labels(front(found)) == ["a", "b", "f"]
    assert smallest(found)["label"] == "a"
    unknown = [model("x", 99, None), model("y", 1, None)]
    assert front(unknown) == [] and smallest(unknown) is None
    assert labels(front([*unknown, *found])) == ["a", "b", "f"]


def test_a_step_goes_from_the_model_it_was_made_from(models):
    models.append(model("pruned", 70.0, 8_000_000, made_from="tuned"))
    models[2]["made_from"] = None
    models[3]["exact_match"] = {**models[3]["exact_match"], "verdict_made_from": "worse"}
    record_of = {"pruned": record("model_pruning")}
    found = steps(models, record_of)
    assert labels([one.source for one in found]) == ["base", "base", "tuned"]
    assert [one.made for one in found] == [True, False, True]
    assert [one.verdict for one in found] == ["better", "better", "worse"]
    assert [one.run for one in found] == [None, None, record_of["pruned"]]
    assert found[2].points("exact_match") == pytest.approx(-14)
    assert found[2].ratio("bytes_on_disk") == pytest.approx(8 / 10.5)


def test_what_has_no_known_cost_has_no_ratio(models):
    models[2]["cost"] = {**models[2]["cost"], "bytes_on_disk": None}
    assert [one.ratio("bytes_on_disk") for one in steps(models, {})] == [1.05, None]
