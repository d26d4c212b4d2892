"""Splits by hash: right shares, stable under new rows, blind to case, width, spaces, marks."""

import hashlib

import numpy as np
import pytest

from slimtune.data.judging import first_equal
from slimtune.data.similarity import keys_of, language, skeleton
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
