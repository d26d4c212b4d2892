"""max_new_tokens auto: room for the longest reference answer, and for the prompts."""

from pathlib import Path

import pytest

from slimtune.config import Config, GenerationSection, Training
from slimtune.evaluation.answer_room import most_tokens, with_answer_room
from slimtune.inference.questions import Question
from slimtune.models.tokenizers import load_tokenizer

LLAMA2 = Path(__file__).resolve().parents[4] / "shared/data/llama2-tokenizer"


def room(*answers: str, max_length: int = 512, **generation: object) -> int:
    training, decoding = Training(max_length=max_length), GenerationSection(**generation)
    config = Config(training=training, generation=decoding)
    questions = [Question("1", ({"role": "user", "content": "?"},), answers)]
    return with_answer_room(config, questions).generation.max_new_tokens


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("south",), 32),  # the sample's answers have eleven bytes at most
        (("7" * 31,), 32),
        (("7" * 32,), 64),  # a digit each, and the end token
        (("south", "7" * 70), 96),  # of several accepted ones the longest
        (("北" * 30,), 96),
        (("word " * 60,), 160),
        (("word " * 4000,), 256),
    ],
)
def test_the_longest_reference_answer_fits(answers, expected) -> None:
    assert room(*answers) == expected


def test_prompts_keep_half_of_the_length_and_a_number_stays() -> None:
    assert room("word " * 4000, max_length=4096) == 512
    assert room("word " * 4000, max_length=100) == 50
    assert room("word " * 4000, max_new_tokens=7) == 7


@pytest.mark.skipif(not LLAMA2.is_dir(), reason="Llama-2's tokenizer is not ours to ship")
def test_llama_2_makes_no_more_of_a_text() -> None:
    tokenizer = load_tokenizer(LLAMA2)
    texts = [
        "The cat sat on the mat.",
        "四乘五等于二十。",
        "3 + 4 = 7",
        "def f(x): return x",
        "𠮷野家",
    ]
    for text in [*texts, "Unbelievable: antidisestablishmentarianism!"]:
        assert len(tokenizer(text, add_special_tokens=False).input_ids) <= most_tokens(text)
