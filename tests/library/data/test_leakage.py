"""Leaks as people understand them: a test question that training has with a greeting before it."""

import random

from prepared_rows import Output, saved

from slimtune.data import writing
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
    said = {"en": f"where its share is {by_share}", "zh": f"只有 {by_share} 行"}
    for language, words in said.items():
        assert words in data_report.data_report_text(few.numbers, "", language)
    chosen = Output(saved(tmp_path, faq(["{}？"])), test_rows=5)
    assert "test_by_share" not in chosen.numbers and len(chosen.splits["test"]) == 5
    assert writing.closing_numbers(chosen.numbers, "train", 512)["test"] == 5
