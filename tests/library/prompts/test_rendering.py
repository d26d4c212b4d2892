"""The exact text of each template, and the cuts around each answer."""

import pytest

from slimtune import prompts
from slimtune.errors import InputError, SettingsError

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": " And 3+3? "},
    {"role": "assistant", "content": "6\n"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
EXPECTED = {
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n2+2? [/INST] 4 </s>"
    "<s>[INST] And 3+3? [/INST] 6 </s>",
    "alpaca": "<s>Be brief.\n\n### Instruction:\n2+2?\n\n### Response:\n4</s>"
    "\n\n### Instruction:\nAnd 3+3?\n\n### Response:\n6</s>",
    "chatml": "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n4</s>\n<|im_start|>user\nAnd 3+3?<|im_end|>\n"
    "<|im_start|>assistant\n6</s>\n",
}


def test_every_template_has_its_exact_text_here():
    assert prompts.template_names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_exact_text(name):
    assert prompts.render([SYSTEM, *TURNS], prompts.template(name), **TOKENS) == EXPECTED[name]


def test_exact_text_without_system():
    def text(name):
        return prompts.render(TURNS[:2], prompts.template(name), **TOKENS)

    assert text("llama2") == "<s>[INST] 2+2? [/INST] 4 </s>"
    assert text("alpaca") == f"<s>{PREAMBLE}\n\n### Instruction:\n2+2?\n\n### Response:\n4</s>"
    assert text("chatml").startswith("<s><|im_start|>user\n2+2?<|im_end|>\n")


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("messages", [TURNS, [SYSTEM, *TURNS], TURNS[:2], TURNS[:3]])
def test_pieces_join_to_the_text_and_supervise_answers_with_eos(name, messages):
    parts = prompts.pieces(messages, prompts.template(name), **TOKENS)
    text = prompts.render(messages, prompts.template(name), **TOKENS)
    assert "".join(text for text, _ in parts) == text
    answers = [text for text, supervised in parts if supervised]
    blank = " " if name == "llama2" else ""
    expected = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    assert answers == [f"{blank}{answer}{blank}</s>" for answer in expected]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_generation_prompt_ends_where_the_answer_starts(name):
    source = prompts.template(name)
    asked = prompts.render(TURNS[:3], source, **TOKENS, add_generation_prompt=True)
    parts = prompts.pieces(TURNS, source, **TOKENS)
    last = max(i for i, (_, supervised) in enumerate(parts) if supervised)
    assert asked == "".join(text for text, _ in parts[:last])


def test_no_bos_where_the_tokenizer_has_none():
    text = prompts.render(
        TURNS[:2], prompts.template("chatml"), bos_token=None, eos_token="<|im_end|>"
    )
    assert text == ("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n")


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(
    "messages", [[TURNS[0], SYSTEM, TURNS[1]], [{"role": "tool", "content": ""}]]
)
def test_wrong_roles_are_refused(name, messages):
    with pytest.raises(InputError, match="refuses it"):
        prompts.render(messages, prompts.template(name), **TOKENS)


def test_unknown_and_missing_templates():
    with pytest.raises(SettingsError, match="alpaca, chatml, llama2"):
        prompts.template("llama3")
    with pytest.raises(SettingsError, match="this model has none"):
        prompts.resolve_template("tokenizer", None)
    assert prompts.resolve_template("tokenizer", "own") == "own"
    assert prompts.resolve_template("llama2", "own") == prompts.template("llama2")


def test_foreign_templates_run_in_the_sandbox_only():
    with pytest.raises(InputError):
        prompts.render(TURNS, "{{ messages.__class__.__mro__[1].__subclasses__() }}", **TOKENS)
    with pytest.raises(SettingsError, match="line 2: not valid jinja"):
        prompts.render(TURNS, "x\n{% if %}", **TOKENS)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    turn = "{{ m.content if loop.last else '(old)' }}{{ eos_token }}"
    rewriting = "{% for m in messages %}" + turn + "{% endfor %}"
    with pytest.raises(SettingsError, match="earlier turns change"):
        prompts.pieces(TURNS, rewriting, **TOKENS)
