"""The model's own template comes first; a BOS that nobody puts in front is written by none."""

import logging

import pytest
from foreign_chat_templates import LLAMA3, QWEN3, SMOLLM2
from tiny_pipelines import byte_level

from slimtune import prompts
from slimtune.errors import SettingsError

IM = "<|im_start|>"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize(
    ("own", "tokens", "expected"),
    [
        (SMOLLM2, [IM], SMOLLM2),
        (LLAMA3, [], LLAMA3),
        (None, [], prompts.template("llama2")),
        (None, [IM], prompts.template("chatml")),
        (QWEN3, [IM], prompts.template("chatml")),
    ],
)
def test_auto_takes_the_own_one_where_it_can_be_learned(own, tokens, expected) -> None:
    assert prompts.resolve_template("auto", own, True, tokens) == expected


def test_a_name_is_a_name() -> None:
    assert prompts.resolve_template("alpaca", SMOLLM2) == prompts.template("alpaca")
    assert prompts.resolve_template("tokenizer", QWEN3) == QWEN3
    with pytest.raises(SettingsError, match="this model has none"):
        prompts.resolve_template("tokenizer", None)
    with pytest.raises(SettingsError, match="not valid jinja"):
        prompts.resolve_template("auto", "{% if %}")


@pytest.mark.parametrize("name", [*prompts.template_names(), "auto"])
@pytest.mark.parametrize("own", [None, SMOLLM2])
def test_no_bos_is_written_that_the_tokenizer_does_not_put_in_front(name, own) -> None:
    tokenizer = byte_level(bos=IM)
    tokenizer.chat_template = own
    ids = prompts.encode(tokenizer, TURNS, prompts.template_of(name, tokenizer))["input_ids"]
    text = tokenizer.decode(ids)
    assert IM * 2 not in text and text.count("<|endoftext|>") == 0
    assert text.startswith(IM) == (name in ("chatml", "auto"))


@pytest.mark.parametrize("name", prompts.template_names())
def test_one_that_is_put_in_front_stands_there_once(name) -> None:
    tokenizer = byte_level(bos="<|begin_of_text|>", puts_bos=True)
    ids = prompts.encode(tokenizer, TURNS, prompts.template_of(name, tokenizer))["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1


@pytest.mark.parametrize(
    ("name", "own", "level", "words"),
    [
        ("auto", None, "INFO", "prompt template: chatml, for the model has none"),
        ("auto", SMOLLM2, "INFO", "the model's own"),
        ("tokenizer", SMOLLM2, "INFO", "the model's own"),
        ("alpaca", SMOLLM2, "WARNING", "alpaca is not the model's own"),
        ("auto", QWEN3, "WARNING", "changes earlier turns"),
        ("chatml", prompts.template("chatml") + "{# theirs #}", "INFO", "the model's own"),
    ],
)
def test_what_is_chosen_is_said_aloud(name, own, level, words, caplog) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = own
    with caplog.at_level(logging.INFO):
        prompts.tell_choice(name, tokenizer)
    (said,) = caplog.records
    assert said.levelname == level and words in said.getMessage()


ODD = "{% for m in messages %}{{ m.content | upper + eos_token }}{% endfor %}"


def test_a_template_that_ollama_cannot_be_given_is_told_before_training(caplog) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = ODD
    prompts.tell_choice("auto", tokenizer)
    assert "no twin for Ollama" in caplog.text and "--prompt-template chatml" in caplog.text
    with pytest.raises(SettingsError, match="no twin for Ollama"):
        prompts.tell_choice("auto", tokenizer, modelfile=True)
    prompts.tell_choice("chatml", tokenizer, modelfile=True)
