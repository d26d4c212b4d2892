"""What was forgotten: marks by program, languages left out by chance, verdicts, and the gate."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_folders import write_tiny_llama

from slimtune import prompts
from slimtune.config import Config, Evaluation, GenerationSection
from slimtune.data.general_sets import PROJECT, Item, general_set
from slimtune.errors import QualityError
from slimtune.evaluation import worker
from slimtune.evaluation.comparison import compare
from slimtune.evaluation.examination import EACH, exam_of, is_right, spoken
from slimtune.evaluation.forgetting import forgotten, require_within
from slimtune.inference.answers import AnswerLoss, Cost, Examined, Generation, Outcome
from slimtune.inference.questions import Asked, Candidate
from slimtune.report.forgotten import closing_lines, section
from slimtune.report.words import LANGUAGES

COST = Cost(1, 1, 0.0, 1.0, 1.0, 1.0, 1)
ITEMS = general_set(PROJECT).chosen(EACH)
PASSAGES = len(general_set(PROJECT).passages)


def right_answer(item: Item) -> str:
    """What a model would say that has it right."""
    if item.check != "regex":
        return item.answers[0]
    return f"<{item.id}>"  # the tests' items have an expression for it


def marked(wrong: int = 0, *, right: int | None = None, nats: float = 2.0) -> Examined:
    """Answers to English and Chinese items of which the first `wrong` are wrong."""
    items = tuple(replace(item, check="exact", answers=(item.id,)) for item in ITEMS)
    said = ["?" if place < wrong else item.id for place, item in enumerate(items)]
    if right is not None:
        said = [item.id if place < right else "?" for place, item in enumerate(items)]
    answers = [Generation(text, [], True) for text in said]
    losses = [AnswerLoss(nats * (5 + place), 5 + place) for place in range(PASSAGES)]
    return Examined(PROJECT, items, answers, losses, "one vocabulary")


def outcome(label: str, examined: Examined | None) -> Outcome:
    return Outcome(Candidate(label, label), [], [], Asked("", ()), COST, examined=examined)


@pytest.mark.parametrize(
    ("check", "wanted", "right", "wrong"),
    [
        ("number", "12", "12", "13"),
        ("number", "12", "7 + 5 = 12.", "12 and 13"),
        ("number", "1000", "1,000\nSince 3 is", "Twelve"),
        ("exact", "green lamp", "Green lamp.", "the green lamp"),
        ("contains", "no", "No, it cannot.", "I know that"),
        ("contains", "蓝色", "是蓝色的。", "红色"),
        ("regex", r"^\W*A\W*$", '"A"', "AB"),
    ],
)
def test_answers_are_marked_by_program(check, wanted, right, wrong) -> None:
    item = Item("x", "en", "arithmetic", "?", check, (wanted, "never said"))
    assert is_right(item, right) and not is_right(item, wrong)


RIGHT = {  # what a model says that has it right, for items with an expression
    "en-common_sense-02": ["Cold.", "Ice is cold."],
    "en-common_sense-31": ["No", "no, it cannot"],
    "en-copying-11": ["HELLO", '"HELLO".'],
    "en-copying-20": ["[4, 5]", "[4,5]"],
    "en-copying-25": ["2031-05-09"],
    "en-refusal-01": ["Unknown.", "The answer is: unknown", "I do not know."],
    "en-refusal-16": ["Impossible", "It is not possible."],
    "zh-common_sense-08": ["大象", "大象更重。"],
    "zh-common_sense-31": ["不会。", "不，它不会"],
    "zh-copying-16": ["完成", "“完成”。"],
    "zh-refusal-01": ["不知道。", "回答：不知道"],
    "zh-refusal-16": ["不可能。"],
}


def test_expressions_find_what_is_right() -> None:
    items = {item.id: item for item in general_set(PROJECT).items}
    for name, answers in RIGHT.items():
        assert items[name].check == "regex"
        for answer in answers:
            assert is_right(items[name], answer), (items[name].question, answer)


def test_an_echo_of_a_question_is_no_answer() -> None:
    """A model that repeats what it reads must not pass for one that can do something."""
    items = general_set(PROJECT).items
    assert not [item.question for item in items if is_right(item, item.question)]


def test_a_language_that_is_right_by_chance_alone_is_left_out() -> None:
    items = [item for item in general_set(PROJECT).items if item.family == "arithmetic"]
    able = [right_answer(item) if item.language == "en" else "9" for item in items]
    answers = [Generation(text, [], True) for text in able]
    examined = Examined(PROJECT, tuple(items), answers, [], "")
    assert spoken(examined) == ("en",)
    assert spoken(marked()) == ("en", "zh") and spoken(marked(right=0)) == ()


def test_what_was_lost_is_counted_and_judged() -> None:
    told = forgotten([outcome("base", marked()), outcome("tuned", marked(12, nats=2.1))])
    assert (told["items"], told["languages"], told["left_out"]) == (150, ["en", "zh"], [])
    base, tuned = told["models"]
    assert base["points"] is None and base["right"] == 150
    assert (tuned["lost"], tuned["gained"], tuned["points"]) == (12, 0, -8.0)
    assert tuned["verdict"] == "worse" and -13 < tuned["low"] < -8 < tuned["high"] < -3
    assert sum(group["lost"] for group in tuned["families"].values()) == 12
    assert tuned["text"]["verdict"] == "worse"
    assert tuned["text"]["growth"] == pytest.approx(10.5, abs=0.1)
    lines = closing_lines(told)
    assert lines["tuned, general"].startswith("lost 12 of 150 (8 %, 5 to 13), gained 0")
    assert "perplexity 7.39 → 8.17 (+11 %" in lines["tuned, text"]
    assert len(told["samples"]) == 12
    for language in ("en", "zh"):
        assert closing_lines(told, language).keys() != {} and section(told, LANGUAGES[language])


def test_one_lost_and_one_gained_is_no_clear_change() -> None:
    before, after = marked(1), marked(2)
    after.answers[0] = Generation(after.items[0].id, [], True)
    told = forgotten([outcome("base", before), outcome("tuned", after)])
    tuned = told["models"][1]
    assert (tuned["lost"], tuned["gained"]) == (1, 1)
    assert (tuned["points"], tuned["verdict"]) == (0, "no clear change")


def test_nothing_is_told_where_nothing_was_asked() -> None:
    assert forgotten([outcome("base", None), outcome("tuned", None)]) is None
    assert forgotten([outcome("base", marked())]) is None
    assert closing_lines(None) == {} and "evaluation.general" in section(None, LANGUAGES["en"])[0]


def test_a_base_that_knows_nothing_has_nothing_to_lose_but_its_text() -> None:
    base, nothing = marked(right=0), replace(marked(), items=(), answers=[])
    told = forgotten([outcome("base", base), outcome("tuned", nothing)])
    assert told["items"] == 0 and told["left_out"] == ["en", "zh"]
    assert list(closing_lines(told)) == ["tuned, text"]
    assert "nothing to lose" in section(told, LANGUAGES["en"])[0]


def test_perplexity_compares_within_one_vocabulary() -> None:
    other = replace(marked(), vocabulary="another")
    told = forgotten([outcome("base", marked()), outcome("other", other)])
    assert told["models"][1]["text"] is None and told["models"][1]["points"] == 0


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (["forgot=0.05"], "tuned: forgot 0.080 (forgot=0.05)"),
        (["perplexity_up=0.1"], "tuned: perplexity_up 0.105"),
        (["match_below=0.9"], "tuned: match 0.850"),
        (["forgot=0.08", "perplexity_up=0.2", "match_below=0.85"], None),
    ],
)
def test_limits_are_judged_one_by_one(limits, named) -> None:
    told = forgotten([outcome("base", marked()), outcome("tuned", marked(12, nats=2.1))])
    scores = {"base": 0.0, "tuned": 85.0}
    models = [{"label": k, "exact_match": {"score": v}} for k, v in scores.items()]
    settings = Evaluation(fail_if=limits)
    if named is None:
        require_within(settings, models, told)
        return
    with pytest.raises(QualityError) as failed:
        require_within(settings, models, told)
    assert named in failed.value.what and failed.value.exit_code == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"fail_if": ["forgets=1"]},
        {"fail_if": ["forgot>0.1"]},
        {"fail_if": ["forgot="]},
        {"fail_if": ["forgot=0.1"], "general": "off"},
    ],
)
def test_limits_that_mean_nothing_are_refused(wrong) -> None:
    with pytest.raises(ValidationError, match="forgot"):
        Evaluation(**wrong)


def test_what_could_not_be_measured_does_not_pass() -> None:
    models = [{"label": "base"}, {"label": "tuned"}]
    with pytest.raises(QualityError, match="not measured"):
        require_within(Evaluation(fail_if=["forgot=0.1"]), models, None)


@pytest.mark.parametrize(
    ("settings", "rows", "models", "each"),
    [
        ({}, 340, 2, 75),
        ({}, 60, 2, 30),
        ({}, 19, 2, None),
        ({}, 340, 1, None),
        ({"general": "off"}, 340, 2, None),
        ({"general": 300}, 4, 2, 150),
        ({"fail_if": ["forgot=0.1"]}, 4, 2, 10),
    ],
)
def test_how_many_are_asked(settings, rows, models, each) -> None:
    exam = exam_of(Evaluation(**settings), rows, models)
    assert (exam and exam.each) == each


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_llama(folder / name, hidden=64) for name in ("base", "tuned")]


def test_a_comparison_asks_and_keeps_like_all_answers(folders, tmp_path, monkeypatch) -> None:
    messages = [{"role": role, "content": "Yes?"} for role in ("user", "assistant")]
    rows = [{"id": "1", "messages": messages}]
    config = Config(
        evaluation=Evaluation(general=8), generation=GenerationSection(max_new_tokens=2)
    )
    candidates = [Candidate(one.name, str(one)) for one in folders]

    def compared() -> dict:
        template = prompts.template("llama2")
        options = {"isolated": False, "kept_in": tmp_path}
        return compare(candidates, rows, template, config, **options).forgotten

    told = compared()
    assert [one["label"] for one in told["models"]] == ["base", "tuned"]
    # Random weights know nothing: the second model is spared, and texts of both languages count.
    assert told["items"] == 0 and told["left_out"] == ["en", "zh"]
    assert told["models"][1]["text"]["perplexity"] > 100
    monkeypatch.setattr(worker, "open_engine", None)  # whoever asks again fails
    assert compared() == told
