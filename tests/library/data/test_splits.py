"""Splits by hash: right shares, stable under new rows, blind to case, width and spacing."""

import hashlib

import pytest

from slimtune.data.splits import prompt_key, split_of
from slimtune.data.text import language, normalise

RATIOS = (0.8, 0.05, 0.15)


def test_shares_come_out_right():
    names = [split_of(f"question {i}", RATIOS, 7) for i in range(20_000)]
    shares = [names.count(name) / len(names) for name in ("train", "validation", "test")]
    assert shares == pytest.approx(RATIOS, abs=0.01)


def test_one_known_position():
    digest = hashlib.sha256(b"7\nkey").digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    expected = "train" if share < 0.8 else "validation" if share < 0.85 else "test"
    assert split_of("key", RATIOS, 7) == expected


def test_zero_shares_stay_empty_and_the_seed_matters():
    assert {split_of(str(i), (1, 0, 0), 1) for i in range(1000)} == {"train"}
    assert {split_of(str(i), (0, 0, 3), 1) for i in range(1000)} == {"test"}
    assert len({split_of("key", (1, 1, 1), seed) for seed in range(50)}) == 3


def test_prompt_key_forgives_case_width_and_spacing_and_leaves_the_answer_out():
    def key(question, answer="a"):
        return prompt_key(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )

    assert key("What is  12 + 3？") == key("what is\n１２ + 3?", "other answer")
    assert key("What is 12 + 3?") != key("What is 12 + 4?")


def test_normalise_and_language():
    assert normalise("  ＡBC\t１２ \n ﬁ ") == "abc 12 fi"
    texts = {
        "Hello there": "en",
        "今天天气很好": "zh",
        "用Python写一个函数sort": "mixed",
        "1+1=2": "other",
    }
    assert {text: language(text) for text in texts} == texts
