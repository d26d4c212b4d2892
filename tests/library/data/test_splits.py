"""Splits by hash: right shares, stable under new rows, blind to case, width, spaces, marks."""

import hashlib

import numpy as np
import pytest

from slimtune.data.judging import first_equal
from slimtune.data.similarity import keys_of, language, skeleton, without_courtesies
from slimtune.data.splits import Shares, assign, position


def test_shares_come_out_right():
    positions = np.array([position(b"question %d" % i, 7) for i in range(20_000)])
    found = np.bincount(assign(positions, Shares(0.05, 0.15)), minlength=3) / len(positions)
    assert found == pytest.approx([0.8, 0.05, 0.15], abs=0.01)


def test_one_known_position_and_the_seed_matters():
    digest = hashlib.sha256(b"7\nkey").digest()
    assert position(b"key", 7) == pytest.approx(int.from_bytes(digest[:8], "big") / 2**64)
    assert len({position(b"key", seed) for seed in range(50)}) == 50


def test_counts_are_exact_and_shares_of_zero_stay_empty():
    positions = np.array([position(b"%d" % i, 1) for i in range(1000)])
    counts = np.bincount(assign(positions, Shares(0.5, 0.5, 30, 200)), minlength=3)
    assert counts.tolist() == [770, 30, 200]
    assert not assign(positions, Shares(0, 0)).any()
    assert set(assign(positions, Shares(0, 0, 0, 5000))) == {2}
    mixed = np.bincount(assign(positions, Shares(0.1, 0, 0, 200)), minlength=3)
    assert mixed[2] == 200 and 70 < mixed[1] < 130


def positions_of(number: int, seed: int = 1) -> np.ndarray:
    return np.array([position(b"%d" % i, seed) for i in range(number)])


@pytest.mark.parametrize("number", [150, 200, 290])
def test_few_rows_still_give_the_test_enough(number):
    assert np.bincount(assign(positions_of(number), Shares(0.05, 0.05)))[2] == 30


def test_the_floor_leaves_small_files_counts_and_no_test_alone():
    def tested(number, *shares):
        return int((assign(positions_of(number), Shares(*shares)) == 2).sum())

    assert tested(149, 0, 0.05) < 15 and tested(1000, 0, 0.1) == 92 > 30
    assert tested(200, 0, 0.05, 0, 12) == 12 and tested(200, 0.1, 0) == 0
    two_groups = np.repeat([0.2, 0.95], [100, 100])
    assert (assign(two_groups, Shares(0, 0.01)) == 2).sum() == 0  # not half of all rows


def test_more_rows_take_from_the_floor_and_give_the_test_none_of_the_old_ones():
    few = assign(positions_of(200), Shares(0.05, 0.05))
    more = assign(positions_of(260), Shares(0.05, 0.05))[:200]
    assert ((few == 2) | (more != 2)).all()


def test_first_equal_is_the_first():
    keys = np.array([5, 3, 5, 7, 3, 5], np.uint64)
    assert first_equal(keys).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_equal(keys[:0]).tolist() == []


def test_the_question_forgives_case_width_and_spacing_and_leaves_the_answer_out():
    def key(question, answer="a"):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return keys_of(turns).question

    assert key("What is  12 + 3？") == key("what is\n１２ + 3?", "other answer")
    assert key("What is 12 + 3?") != key("What is 12 + 4?")


@pytest.mark.parametrize(
    ("text", "core"),
    [
        ("您好，怎么退货？谢谢", "怎么退货"),
        ("怎么退货谢谢", "怎么退货"),
        ("你好请问怎么退货", "怎么退货"),
        ("亲，在吗？我想问一下怎么退货？非常感谢您！", "怎么退货"),
        ("Hello there! How do I return it? Thank you very much.", "How do I return it"),
        ("HI, how do I return it, please?", "how do I return it"),
        *((text, text) for text in ("你好吗", "你好！", "谢谢", "亲子装怎么退", "在吗啡的作用下")),
        *((text, text) for text in ("History of hi", "What is the Thai for thanks?", "Hi!", "")),
        *((text, text) for text in ("谢谢怎么说", "hi_there what", "Is it called Thanksgiving")),
    ],
)
def test_courtesies_go_and_what_only_looks_like_one_stays(text, core):
    assert without_courtesies(text) == core


def test_a_courtesy_makes_no_other_question():
    def keys(question):
        return keys_of([{"role": "user", "content": question}])

    bare, polite = keys("怎么退货？"), keys("您好，怎么退货？谢谢")
    assert (bare.question, bare.asked) == (polite.question, polite.asked)
    assert bare.near != polite.near and bare.exact != polite.exact  # another row all the same


def test_skeleton_keeps_what_changes_the_meaning():
    same = ["Ask  ＡBC,\t１２!", "ask abc 12", "“Ask” ABC… 12。"]
    assert {skeleton(text) for text in same} == {b"askabc12"}
    others = ["12 - 3", "12 + 3", "12 * 3", "1.2 - 3", "f(x)", "fx", "???", "!"]
    assert len({skeleton(text) for text in others}) == len(others)
    assert skeleton("第３天！") == skeleton("第3天") and skeleton("ÉTÉ") == skeleton("été")


def test_language():
    texts = {
        "Hello there": "en",
        "今天天气很好": "zh",
        "用Python写一个函数sort": "mixed",
        "1+1=2": "other",
    }
    assert {text: language(text) for text in texts} == texts
