"""Rows longer than the limit: whole conversations are left, and no answer loses its end."""

import pytest

from slimtune import prompts
from slimtune.errors import InputError
from slimtune.prompts.encoding import shorten, split
from slimtune.training.batches import encode_rows

SYSTEM = {"role": "system", "content": "Be brief."}


def exchange(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TALK = [SYSTEM, *exchange("one two three", "four"), *exchange("five six", "seven eight")]
TALK += exchange("nine ten eleven twelve", "thirteen")


def words(messages) -> int:
    """A size that a reader can count: words of all messages."""
    return sum(len(message["content"].split()) for message in messages)


def contents(messages) -> list[str]:
    return [message["content"] for message in messages]


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (15, contents(TALK)),
        (14, contents([SYSTEM, *TALK[3:]])),
        (10, contents([SYSTEM, *TALK[5:]])),
        (7, contents([SYSTEM, *TALK[5:]])),
        (6, ["Be brief.", "ten eleven twelve", "thirteen"]),
        (4, ["Be brief.", "twelve", "thirteen"]),
        (3, ["eleven twelve", "thirteen"]),
        (2, ["twelve", "thirteen"]),
    ],
)
def test_oldest_exchanges_go_first_then_the_start_of_the_question(limit, left):
    shorter = shorten(TALK, words, limit)
    assert contents(shorter) == left and words(shorter) <= limit


def test_an_answer_that_leaves_no_room_cannot_be_kept():
    assert shorten(TALK, words, 1) is None
    assert shorten(TALK[:1], words, 1) is None
    assert split(exchange("a", "b " * 9) + exchange("c", "d"), words, 5) is None


def test_split_puts_every_exchange_in_one_part_under_the_system_message():
    parts = split(TALK, words, 11)
    assert [contents(part) for part in parts] == [
        contents(TALK[:5]),
        contents([SYSTEM, *TALK[5:]]),
    ]
    assert sum((part[1:] for part in split(TALK, words, 7)), []) == TALK[1:]
    cut = split(TALK, words, 6)
    assert [contents(part)[-1] for part in cut] == ["four", "seven eight", "thirteen"]
    assert contents(cut[2]) == ["Be brief.", "ten eleven twelve", "thirteen"]


@pytest.fixture(params=["sentencepiece_tokenizer", "byte_level_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["llama2", "alpaca", "chatml"])
def template(request) -> str:
    return prompts.template(request.param)


def learned(tokenizer, encoded) -> list[str]:
    """The supervised texts of a sample, each without its EOS, which must be there."""
    texts = tokenizer.decode(
        [label for label in encoded["labels"] if label != prompts.IGNORED],
        skip_special_tokens=False,
    ).split(tokenizer.eos_token)
    assert texts[-1] == ""
    return [text.strip() for text in texts[:-1]]


def test_every_policy_keeps_whole_answers_with_their_eos(tokenizer, template):
    length = len(prompts.encode(tokenizer, TALK, template)["input_ids"])
    for limit in range(1, length + 2):
        for policy in ("truncate_prompt", "split_turns", "drop"):
            fitted = prompts.fit_row(TALK, tokenizer, template, limit, policy)
            assert fitted.tokens == length
            assert bool(fitted.reason) == (fitted.how == "dropped") == (not fitted.conversations)
            for messages, encoded in zip(fitted.conversations, fitted.encoded, strict=True):
                assert encoded == prompts.encode(tokenizer, messages, template)
                assert len(encoded["input_ids"]) <= limit
                answers = [m["content"] for m in messages if m["role"] == "assistant"]
                assert learned(tokenizer, encoded) == answers
            answers = [m["content"] for part in fitted.conversations for m in part[::-1][:1]]
            if policy == "truncate_prompt" and answers:
                assert answers == ["thirteen"]
            if policy == "split_turns" and answers:
                every = [a for one in fitted.encoded for a in learned(tokenizer, one)]
                assert every == ["four", "seven eight", "thirteen"]


def test_what_happened_is_told(tokenizer, template):
    length = len(prompts.encode(tokenizer, TALK, template)["input_ids"])

    def how(limit, policy):
        return prompts.fit_row(TALK, tokenizer, template, limit, policy).how

    assert {how(length, policy) for policy in ("truncate_prompt", "split_turns", "drop")} == {
        "whole"
    }
    assert how(length - 1, "truncate_prompt") == "shortened"
    assert how(length - 1, "split_turns") == "split"
    assert how(length - 1, "drop") == "dropped"
    assert how(2, "truncate_prompt") == how(2, "split_turns") == "dropped"
    with pytest.raises(InputError, match=f"a.json:7: {length} tokens, more than {length - 1}"):
        prompts.fit_row(TALK, tokenizer, template, length - 1, "error", "a.json:7")


def test_training_shortens_as_truncate_prompt_does(tokenizer, template):
    length = len(prompts.encode(tokenizer, TALK, template)["input_ids"])
    row = {"messages": TALK, "source": {"file": "a", "line": 1}}
    for limit in range(length // 3, length + 1):
        fitted = prompts.fit_row(TALK, tokenizer, template, limit, "truncate_prompt")
        if not fitted.encoded:
            continue
        sample = encode_rows([row], tokenizer, template, limit).samples[0]
        assert sample.input_ids == fitted.encoded[0]["input_ids"]
        assert sample.labels == fitted.encoded[0]["labels"]


def test_a_shortened_prompt_is_the_prefix_of_the_shortened_row(tokenizer, template):
    row = TALK[-2:]
    encoded = prompts.encode(tokenizer, row, template)
    prompt = prompts.encode_prompt(tokenizer, row, template)
    answer = len(encoded["input_ids"]) - len(prompt)
    for limit in range(1, len(prompt) + 1):
        cut = prompts.encode(tokenizer, row, template, limit + answer)
        if cut is not None:
            asked = prompts.encode_prompt(tokenizer, row, template, limit)
            assert asked == cut["input_ids"][: len(asked)] and len(asked) <= limit


def test_a_prompt_whose_template_alone_is_too_long_keeps_bos_and_its_end(tokenizer, template):
    prompt = prompts.encode_prompt(tokenizer, TALK, template)
    cut = prompts.encode_prompt(tokenizer, TALK, template, 4)
    bos = int(prompt[0] == tokenizer.bos_token_id)
    assert cut == prompt[:bos] + prompt[bos - 4 :]


def test_a_row_that_the_template_refuses_is_named(tokenizer):
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="a.json:7: .*\n.*System role not supported"):
        prompts.fit_row(TALK, tokenizer, template, 99, "drop", "a.json:7")
