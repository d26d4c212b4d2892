"""Which ids are learned, against an encoding of each piece on its own, as Meta's reference does."""

import re

import pytest
import sentencepiece
from originals import originals

from slimtune import prompts

SYSTEM = {"role": "system", "content": "Be brief. 请简短。"}
TURNS = [
    {"role": "user", "content": "Write  area(r)\n\n今天 <b>½</b>"},
    {"role": "assistant", "content": "def area(r):\n    return 3.14 * r ** 2"},
    {"role": "user", "content": "Why? [1] & 2"},
    {"role": "assistant", "content": "天气很好。\n\n- one\n- two"},
    {"role": "user", "content": "12 + 30"},
    {"role": "assistant", "content": "42"},
]
CONVERSATIONS = {
    "single": TURNS[:2],
    "single, system": [SYSTEM, *TURNS[:2]],
    "turns": TURNS,
    "turns, system": [SYSTEM, *TURNS],
}
# A model's own template (`tokenizer`): Zephyr's, with answers marked for trainers that need it.
OWN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(params=["sample_tokenizer", *originals("llama2-tokenizer", "llama2_tokenizer")])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[*prompts.template_names(), "tokenizer"])
def template(request) -> str:
    return prompts.resolve_template(request.param, OWN)


@pytest.fixture(params=CONVERSATIONS)
def messages(request) -> list[dict]:
    return CONVERSATIONS[request.param]


def encoded_apart(tokenizer, text: str) -> list[int]:
    """Ids of the text between special tokens by SentencePiece itself, one piece after another."""
    model = sentencepiece.SentencePieceProcessor(model_file=tokenizer.init_kwargs["vocab_file"])
    special = {"<s>": [model.bos_id()], "</s>": [model.eos_id()]}
    parts = re.split("(</?s>)", text)
    return [i for part in parts for i in special.get(part, model.encode(part) if part else [])]


def learned(encoded) -> list[list[int]]:
    """The runs of supervised ids."""
    runs, before = [], prompts.IGNORED
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        if label != prompts.IGNORED:
            assert label == token
            runs = runs if before != prompts.IGNORED else [*runs, []]
            runs[-1].append(token)
        before = label
    return runs


def test_ids_are_those_of_the_pieces_encoded_apart(tokenizer, template, messages):
    text = prompts.render(messages, template, bos_token="<s>", eos_token="</s>")
    ids = prompts.encode(tokenizer, messages, template)["input_ids"]
    assert ids == encoded_apart(tokenizer, text.rstrip())


def test_exactly_the_answers_and_their_eos_are_learned(tokenizer, template, messages):
    runs = learned(prompts.encode(tokenizer, messages, template))
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert [run[-1] for run in runs] == [tokenizer.eos_token_id] * len(answers)
    assert [run.count(tokenizer.eos_token_id) for run in runs] == [1] * len(answers)
    assert [tokenizer.decode(run[:-1]).strip() for run in runs] == answers


def test_no_double_bos(tokenizer, template, messages):
    ids = prompts.encode(tokenizer, messages, template)["input_ids"]
    bos = tokenizer.bos_token_id
    assert ids[0] == bos and ids[1] != bos
    assert [bos, bos] not in [ids[i : i + 2] for i in range(len(ids))]
    asked = prompts.encode_prompt(tokenizer, messages, template)
    assert asked == ids[: len(asked)]


def test_the_whole_decodes_to_the_text(tokenizer, template, messages):
    """Round trip, up to the dummy space that follows a special token."""
    text = prompts.render(messages, template, bos_token="<s>", eos_token="</s>").rstrip()
    ids = prompts.encode(tokenizer, messages, template)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    assert re.sub("(</?s>) ?", r"\1", decoded) == re.sub("(</?s>) ?", r"\1", text)


def test_an_answer_of_weight_0_is_read_and_not_learned(tokenizer, template) -> None:
    """The prompt's ids stay as they are; of three answers only those with another weight count."""
    marked = [dict(turn) for turn in TURNS]
    marked[1]["weight"], marked[3]["weight"] = 0, 1
    plain, weighed = (prompts.encode(tokenizer, turns, template) for turns in (TURNS, marked))
    assert weighed["input_ids"] == plain["input_ids"]
    learned = [label for label in plain["labels"] if label != prompts.IGNORED]
    first = prompts.encode(tokenizer, TURNS[:2], template)["labels"]
    unlearned = sum(label != prompts.IGNORED for label in first)
    kept = [label for label in weighed["labels"] if label != prompts.IGNORED]
    assert kept == learned[unlearned:]
