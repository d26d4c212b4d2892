"""The table of measures against what is computed, and against every place that shows it."""

import csv
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from yaml import safe_load

from slimtune.evaluation import measures
from slimtune.evaluation.comparison import Comparison
from slimtune.evaluation.outputs import comparison_table, metrics_of, write_answers_csv
from slimtune.evaluation.scoring import measure, row_scores, signatures
from slimtune.inference.answers import AnswerLoss, Cost, Generation, Outcome
from slimtune.inference.questions import Asked, Candidate, Question
from slimtune.report.measure_table import MEASURES, names_of, read_table, value_of
from slimtune.report.page import render_page
from slimtune.report.training_report import Found, render_report

QUESTIONS = [
    Question(f"r{n}", ({"role": "user", "content": f"{n}?"},), (f"答案{n}",)) for n in range(60)
]
ENTRY = {
    "group": "health",
    "arrow": "lower",
    "digits": 1,
    "unit": "%",
    "en": {"title": "a", "meaning": "b"},
    "zh": {"title": "a", "meaning": "b"},
}


def outcome(label: str, right: int) -> Outcome:
    """A model that answers the first `right` questions correctly."""
    texts = [asked.reference for asked in QUESTIONS[:right]]
    texts += ["不知道"] * (len(QUESTIONS) - right)
    generations = [Generation(text, [1, 2, 3], True) for text in texts]
    losses = [AnswerLoss(4.0 + 90 / right, 4, 2, 0.3 / right, 3, 4)] * len(QUESTIONS)
    cost = Cost(12_345, 67_890_000, 0.1, 1234.0, 99.0, 30.0, 500_000_000)
    return Outcome(Candidate(label, label), generations, losses, Asked("same", ()), cost)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    outcomes = [outcome("base", 15), outcome("tuned", 45)]
    scores = [row_scores(one, QUESTIONS) for one in outcomes]
    settings = {"rows": 60, "max_new_tokens": 8, "extract": "whole", "leaked_rows": None}
    settings |= {"decoding": "greedy", "signatures": signatures(QUESTIONS)}
    found = measure(outcomes, scores, QUESTIONS)
    return Comparison(tuple(QUESTIONS), outcomes, scores, found, [], settings)


def computed(model: dict) -> set[str]:
    """Every measure in the plain data of a model."""
    judged = {name for name, value in model.items() if isinstance(value, dict) and "low" in value}
    return judged | model["health"].keys() | model["cost"].keys()


def test_what_is_computed_is_what_the_table_names(comparison):
    for model in comparison.measures:
        assert computed(model) == MEASURES.keys()
        assert all(value_of(model, name) is not None for name in MEASURES)
    assert names_of("health") == [one.name for one in fields(measures.Health)]
    assert set(names_of("cost")) == {one.name for one in fields(Cost)}


def test_every_measure_of_quality_is_the_function_of_its_name():
    for name in names_of("quality"):
        assert callable(getattr(measures, name)), name


def test_a_measure_without_an_entry_is_noticed(comparison):
    model = comparison.measures[0]
    grown = {**model, "cost": {**model["cost"], "watts": 3.0}}
    assert computed(grown) - MEASURES.keys() == {"watts"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_measure_stands_in_the_report_and_the_plots_where_it_says(comparison, language):
    found = Found.of(json.loads(json.dumps(metrics_of(comparison))), {})
    report, page = render_report(found, language), render_page(found, language)
    report = report.replace("\u00a0", " ")  # no line ends inside a figure
    plots = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    for name, entry in MEASURES.items():
        title = entry.title(language)
        lines = [line for line in report.splitlines() if line.startswith(f"| {title} |")]
        assert len(lines) == 2, name  # its figures, and its meaning
        assert any(entry.written(value_of(comparison.measures[1], name)) in line for line in lines)
        assert any(entry.label(language).meaning in line for line in lines)
        assert (title in plots) is entry.plot, name


def test_every_measure_stands_in_the_console_and_the_csv_where_it_says(comparison, tmp_path):
    headers, rows = comparison_table(comparison)
    shown = [entry.en.console for entry in MEASURES.values() if entry.console]
    assert [one for one in headers if one not in ("model", "vs first")] == shown
    assert headers == ["model", "match %", "vs first", "KL", "size", "write t/s", "memory"]
    assert [row[2] for row in rows] == ["–", "better"]
    write_answers_csv(comparison, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as handle:
        columns = next(csv.reader(handle))
    for name, entry in MEASURES.items():
        assert (f"tuned {name}" in columns) is entry.csv, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"over": "answer"},
        {"group": "quality"},
        {"arow": "x"},
        {"zh": None},
        {"csv": True},
        {"en": ENTRY["en"] | {"console": "a"}},
    ],
)
def test_an_entry_that_is_not_as_it_should_be_is_refused(wrong):
    assert read_table(json.dumps({"x": ENTRY}))["x"].written(2.25) == "2.2"
    with pytest.raises(ValueError):
        read_table(json.dumps({"x": {**ENTRY, **wrong}}))


def test_no_entry_is_written_twice():
    """YAML keeps the last of two equal keys without a word."""
    text = Path(measures.__file__).parents[1].joinpath("report/measures.yaml").read_text("utf-8")
    assert len(re.findall(r"^\w+:$", text, re.M)) == len(safe_load(text))


def test_a_function_that_looks_like_a_measure_has_an_entry() -> None:
    """(prediction, reference, pattern) is how the table calls a measure of answers."""
    called = ["prediction", "reference", "pattern"]
    for name, function in vars(measures).items():
        if inspect.isfunction(function) and list(inspect.signature(function).parameters) == called:
            assert name in MEASURES, f"{name} has no entry in report/measures.yaml"
