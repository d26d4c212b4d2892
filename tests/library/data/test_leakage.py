"""Leaks as people understand them: a test question that training has with a greeting before it."""

import random

import pytest
from prepared_rows import Output, alpaca_row, saved

from slimtune.data import leakage, writing
from slimtune.evaluation import bootstrap
from slimtune.report import data_report

THINGS = ("收货地址", "绑定手机", "登录密码", "发票抬头")
THINGS += ("会员等级", "配送时间", "支付方式", "订单备注")
DEEDS = ("如何修改{}", "{}怎么查询", "哪里能看到{}", "{}可以取消吗", "为什么没有{}", "{}要多久生效")
COURTESIES = ("您好，{}？", "{}谢谢", "请问{}，谢谢！", "{}?")
COURTESIES += ("Hi, {}", "在吗？{}，麻烦了", "{}, thanks!")
CORES = [deed.format(thing) for thing in THINGS for deed in DEEDS]


def faq(courtesies=COURTESIES) -> list[dict]:
    """Rows of a customer service: each question several times, polite in another way."""
    rows = [
        {"question": one.format(core), "answer": f"答复{number}：请按第{number}页办理。"}
        for number, core in enumerate(CORES)
        for one in courtesies
    ]
    random.Random(3).shuffle(rows)
    return rows


def cores(rows: list[dict]) -> set[str]:
    """What the rows ask, told by what they were made of."""
    asked = [row["messages"][0]["content"] for row in rows]
    return {core for core in CORES for one in asked if core in one}


def test_no_question_of_the_test_stands_in_training_but_for_a_greeting(tmp_path):
    out = Output(saved(tmp_path, faq()), test_ratio=0.15)
    train, test = cores(out.splits["train"]), cores(out.splits["test"])
    assert test and train and not test & train and not cores(out.splits["validation"]) & train
    assert out.numbers["leaks"] == 0 and len(out.rows) == len(faq())  # and it costs no row


def test_ten_polite_questions_of_a_given_test_file_leave_training(tmp_path):
    raw = saved(tmp_path, faq(["{}？"]))
    polite = [{"question": f"您好，{core}，谢谢", "answer": "好的。"} for core in CORES[:10]]
    test = saved(tmp_path, polite, "test.jsonl")
    out = Output(raw, test_input=test, validation_ratio=0)
    assert len(out.splits["test"]) == 10 == out.numbers["leaks"]
    assert not cores(out.splits["train"]) & set(CORES[:10])


def test_few_rows_give_the_test_its_floor_and_say_so(tmp_path):
    rows = faq(["{}？"]) + faq(["再问{}"]) + faq(["另问{}"]) + faq(["三问{}"])
    few = Output(saved(tmp_path, rows))
    assert few.numbers["splits"]["test"] == 30
    by_share = few.numbers["test_by_share"]
    assert 0 < by_share < 30
    told = writing.closing_numbers(few.numbers, "train", 512)["test"]
    assert told.startswith(f"30 (its share is {by_share}") and "--test-rows" in told
    said = {"en": f"where its share is {by_share}", "zh": f"只有 {by_share} 条"}
    for language, words in said.items():
        assert words in data_report.data_report_text(few.numbers, "", language)
    chosen = Output(saved(tmp_path, faq(["{}？"])), test_rows=5)
    assert "test_by_share" not in chosen.numbers and len(chosen.splits["test"]) == 5
    assert writing.closing_numbers(chosen.numbers, "train", 512)["test"].startswith("5 (")


@pytest.mark.parametrize(("rows", "told"), [(1, True), (19, True), (20, False)])
def test_a_small_validation_says_that_it_cannot_choose(tmp_path, rows, told):
    few = Output(saved(tmp_path, faq(["{}？"])), validation_rows=rows, test_rows=5)
    said = writing.closing_numbers(few.numbers, "train", 512)["validation"]
    assert str(said) == f"{rows} ({writing._FEW_CHOOSE})" if told else said == rows


@pytest.mark.parametrize("rows", [1, 5, 10, 29])
def test_a_small_test_says_what_chance_alone_does_to_it(tmp_path, rows):
    few = Output(saved(tmp_path, faq(["{}？"])), test_rows=rows)
    low, high = bootstrap.wilson(50, rows)
    points = f"{(high - low) / 2:.0f}"
    assert few.numbers["test_chance"] == pytest.approx((high - low) / 2)
    told = writing.closing_numbers(few.numbers, "train", 512)["test"]
    assert told.startswith(f"{rows} (") and f"±{points} points" in told and "--test-rows" in told
    for language, word in (("en", "by chance"), ("zh", "偶然")):
        page = data_report.data_report_text(few.numbers, "", language)
        assert f"±{points}" in page and word in page


def test_a_test_of_thirty_rows_and_an_empty_one_need_no_such_word(tmp_path):
    raw = saved(tmp_path, faq(["{}？"]))
    for output in (Output(raw, test_rows=30), Output(raw, test_ratio=0)):
        assert "test_chance" not in output.numbers
        assert "±" not in str(writing.closing_numbers(output.numbers, "train", 512)["test"])
        assert "±" not in data_report.data_report_text(output.numbers)


def told(rows: list[dict], folder, **settings) -> dict:
    return Output(saved(folder, rows), **settings).numbers["leakage"]


def reworded(number: int) -> list[dict]:
    """Questions of their own; each third one comes again with its last word changed."""
    chance = random.Random(5)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(900)]
    rows = []
    for i in range(number):
        asked = chance.choices(words, k=9)
        rows.append({"question": " ".join(asked), "answer": f"Reply {i}, {asked[0]}."})
        if i % 3 == 0:
            again = " ".join([*asked[:-1], "now"])
            rows.append({"question": again, "answer": f"In other words {i} {asked[3]}."})
    return rows


def jaccard(one: str, two: str) -> float:
    """By hand: runs of 5 letters, spaces aside."""
    texts = [text.replace(" ", "") for text in (one, two)]
    ours, theirs = ({text[at : at + 5] for at in range(len(text) - 4)} for text in texts)
    return len(ours & theirs) / len(ours | theirs)


def test_questions_alike_are_counted_exactly_whatever_the_settings(tmp_path):
    rows = reworded(120)
    for settings in ({}, {"drop_leaks": False, "duplicates": "keep"}, {"workers": 2}):
        out = Output(saved(tmp_path, rows), **settings)
        train, test = (
            [row["messages"][0]["content"] for row in out.splits[split]]
            for split in ("train", "test")
        )
        twins = sum(any(jaccard(ours, theirs) >= 0.5 for theirs in train) for ours in test)
        found = out.numbers["leakage"]
        assert (found["questions_alike"], found["questions_compared"]) == (twins, len(test))
        assert 3 < twins < len(test) == found["test_rows"] and found["answers_in_training"] == 0
    flag = {"leak_similarity": found["similarity"] - 0.1}  # estimated within 0.1
    assert told(rows, tmp_path, **flag)["questions_alike"] == 0


def test_twins_are_those_that_are_at_least_half_alike():
    chance, near = random.Random(9), 0
    words = ["".join(chance.choices("abcdefghij", k=4)) for _ in range(60)]
    texts = [" ".join(chance.choices(words, k=8)) for _ in range(40)]
    for text in list(texts):  # of 8 words 1 to 5 are others: similarities around one half
        changed = text.split()
        changed[: chance.randrange(1, 6)] = chance.choices(words, k=3)
        texts.append(" ".join(changed))
    turns = [[{"role": "user", "content": text}] for text in texts]
    asked = leakage.Asked.of(turns)
    for text, turn in zip(texts, turns, strict=True):
        alike = [jaccard(text, other) for other in texts]
        assert asked.twins(turn) == [i for i, found in enumerate(alike) if found >= 0.5]
        near += sum(0.5 <= found < 0.7 for found in alike)
    assert near > 10


def test_answers_that_stand_in_training_are_counted_normalised(tmp_path):
    rows = [{"question": f"{i} {i * 7919}", "answer": f"Wort{i}"} for i in range(60)]
    assert told(rows, tmp_path)["answers_in_training"] == 0
    test = [{"question": f"Other {i}", "answer": f"ＷＯＲＴ {i}!"} for i in range(0, 60, 4)]
    given = {"test_input": saved(tmp_path, test, "test.jsonl"), "validation_ratio": 0}
    found = told(rows, tmp_path, **given)
    assert (found["answers_in_training"], found["test_rows"]) == (15, 15)
    grouped = [row | {"answer": f"Label {i % 9}"} for i, row in enumerate(rows)]
    assert told(grouped, tmp_path)["answers_in_training"] > 0
    assert (
        told(grouped, tmp_path, group_column="answer", test_ratio=0.3)["answers_in_training"] == 0
    )


def test_large_files_are_sampled_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(leakage, "_MOST_QUESTIONS", 12)
    found = told(reworded(120), tmp_path, test_rows=40)
    assert (found["questions_compared"], found["test_rows"]) == (12, 40)
    monkeypatch.setattr(leakage, "_MOST_SHINGLES", 150)
    assert told(reworded(120), tmp_path, test_rows=40)["questions_compared"] == 2
    monkeypatch.setattr(leakage, "_MOST_TRAINING", 50)
    out = Output(saved(tmp_path, reworded(120)), test_rows=40)
    assert out.numbers["leakage"]["training_compared"] == round(1 / 3, 4)
    assert "33% of the training rows" in data_report.data_report_text(out.numbers)


def test_the_report_always_tells_and_the_closing_lines_where_it_is_much(tmp_path):
    out = Output(saved(tmp_path, faq(["{}？", "再问{}"])), test_ratio=0.2)
    found = out.numbers["leakage"]
    assert found["questions_alike"] > 0.1 * found["questions_compared"]
    closing = writing.closing_numbers(out.numbers, "train", 512)
    assert "--leak-similarity 0.5" in closing["test questions much like a training one"]
    few = Output(saved(tmp_path, [alpaca_row(i, instruction=f"{i}") for i in range(60)]))
    assert few.numbers["leakage"]["questions_alike"] == 0
    assert not any(
        "much like" in name for name in writing.closing_numbers(few.numbers, "train", 512)
    )
    for language, words in (("en", "test rows whose answer"), ("zh", "回答也出现在训练集中")):
        for numbers in (out.numbers, few.numbers):
            page = data_report.data_report_text(numbers, "", language)
            assert words in page and "--leak-similarity 0.5" in page
    assert "leakage" not in Output(saved(tmp_path, faq()), test_ratio=0).numbers
