"""Ids and labels: exactly the answers and their EOS are learned, on the ids llama.cpp makes."""

import pytest
import sentencepiece
from originals import originals

from slimtune import prompts
from slimtune.errors import SettingsError

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Write  area(r)\n今天"},
    {"role": "assistant", "content": "def area(r):\n    return 3.14 * r ** 2"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "天气很好。"},
]
CONVERSATIONS = [TURNS, [SYSTEM, *TURNS], TURNS[:2], [SYSTEM, *TURNS[:2]]]


LLAMAS = ["sample_tokenizer", *originals("llama2-tokenizer", "llama2_tokenizer")]


@pytest.fixture(params=["byte_level_tokenizer", *LLAMAS])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["llama2", "alpaca", "chatml"])
def template(request) -> str:
    return prompts.template(request.param)


def whole_text_ids(tokenizer, messages, template, **more) -> list[int]:
    """What llama.cpp and Ollama do: the rendered text as one string, special tokens parsed."""
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    text = prompts.render(messages, template, **tokens, **more)
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_labels_are_the_answers_and_their_eos(tokenizer, template, messages):
    encoded = prompts.encode(tokenizer, messages, template)
    ids, labels = encoded["input_ids"], encoded["labels"]
    learned, current = [], []
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, prompts.IGNORED)
        if label != prompts.IGNORED:
            current.append(token)
        elif current:
            learned.append(current)
            current = []
    learned.append(current)
    assert all(answer[-1] == tokenizer.eos_token_id for answer in learned)
    texts = [tokenizer.decode(answer[:-1]).strip() for answer in learned]
    assert texts == [m["content"] for m in messages if m["role"] == "assistant"]
    assert labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_prompt_ids_are_those_of_the_text_and_the_prefix_of_training(tokenizer, template, messages):
    prompt = prompts.encode_prompt(tokenizer, messages, template)
    assert prompt == prompts.encode_prompt(tokenizer, messages[:-1], template)
    assert prompt == whole_text_ids(tokenizer, messages[:-1], template, add_generation_prompt=True)
    encoded = prompts.encode(tokenizer, messages, template)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["labels"][len(prompt)] != prompts.IGNORED
    assert set(encoded["labels"][len(prompt) :]).isdisjoint({prompts.IGNORED})
    whole = whole_text_ids(tokenizer, messages, template)
    assert encoded["input_ids"] == whole[: len(encoded["input_ids"])]


def test_bos_exactly_once_a_turn(sentencepiece_tokenizer):
    def count(name):
        ids = prompts.encode(sentencepiece_tokenizer, TURNS, prompts.template(name))["input_ids"]
        assert ids[0] == 1
        return ids.count(1)

    for name in prompts.template_names():
        assert count(name) == (2 if name == "llama2" else 1), name


def test_bos_is_added_where_a_foreign_template_forgets_it(sentencepiece_tokenizer):
    forgetful = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = prompts.encode(sentencepiece_tokenizer, TURNS[:2], forgetful)["input_ids"]
    assert ids[0] == 1 and ids.count(1) == 1


@pytest.mark.parametrize("name", LLAMAS)
def test_llama2_ids_equal_metas_reference(name, request):
    """Meta's generation.py: each turn encoded by SentencePiece alone, with BOS and EOS."""
    tokenizer = request.getfixturevalue(name)
    model = sentencepiece.SentencePieceProcessor(model_file=tokenizer.init_kwargs["vocab_file"])
    system = f"<<SYS>>\n{SYSTEM['content']}\n<</SYS>>\n\n"
    first = f"[INST] {system}{TURNS[0]['content']} [/INST] {TURNS[1]['content']} "
    second = f"[INST] {TURNS[2]['content']} [/INST] {TURNS[3]['content']} "
    expected = [i for turn in (first, second) for i in (1, *model.encode(turn), 2)]
    encoded = prompts.encode(tokenizer, [SYSTEM, *TURNS], prompts.template("llama2"))
    assert encoded["input_ids"] == expected
    assert tokenizer.convert_ids_to_tokens(expected[1]).startswith("▁")  # 518, not 29961


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_too_long_rows_lose_prompt_and_never_the_answer(tokenizer, template, messages):
    full = prompts.encode(tokenizer, messages, template)
    size = len(full["input_ids"])
    answer = size - len(prompts.encode_prompt(tokenizer, messages, template))
    fitting = [
        (length, prompts.encode(tokenizer, messages, template, max_length=length))
        for length in range(1, size + 3)
    ]
    assert fitting[0][1] is None and fitting[-1][1] == full
    for length, cut in fitting:
        if cut is None:
            continue
        assert answer < len(cut["input_ids"]) == len(cut["labels"]) <= length
        assert cut["labels"][-answer:] == full["labels"][-answer:]
        assert cut["labels"].count(tokenizer.eos_token_id) in (1, 2)
        opening = 2 if full["input_ids"][0] == tokenizer.bos_token_id else 1
        assert cut["input_ids"][:opening] == full["input_ids"][:opening]


def test_an_answer_never_shares_a_token_with_the_prompt(byte_level_tokenizer):
    """A template that ends in a blank: training still starts from the ids that inference sees."""
    end = "{{ eos_token if m.role == 'assistant' else ' ' }}"
    glued = "{% for m in messages %}{{ m.content }}" + end + "{% endfor %}"
    messages = [{"role": "user", "content": "is"}, {"role": "assistant", "content": "an"}]
    prompt = byte_level_tokenizer("is ").input_ids
    joint = byte_level_tokenizer("is an").input_ids
    assert joint[: len(prompt)] != prompt
    encoded = prompts.encode(byte_level_tokenizer, messages, glued)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert prompts.encode_prompt(byte_level_tokenizer, messages, glued) == prompt
    assert byte_level_tokenizer.decode(encoded["input_ids"]) == "is an<|im_end|>"


def test_a_template_without_eos_is_refused(sentencepiece_tokenizer):
    endless = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(SettingsError, match="answers have no end"):
        prompts.encode(sentencepiece_tokenizer, TURNS, endless)
