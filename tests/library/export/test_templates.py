"""Which template counts in an export, and when a foreign one is one of ours in other words."""

import json

import pytest
from foreign_chat_templates import FOREIGN, QWEN3

from slimtune import prompts
from slimtune.errors import SettingsError
from slimtune.export.go_template import STOPS, chosen, twin
from slimtune.models.tokenizer_files import SpecialTokens, own_template

TOKENS = SpecialTokens("<s>", "</s>", puts_bos=True)

# As Llama-2-chat's own repository has it, in other words than our llama2.jinja.
META_LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message.strip() + '\\n<</SYS>>\\n\\n'"
    " + message['content'].strip() %}"
    "{% else %}{% set content = message['content'].strip() %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
    "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# ChatML that invents a system message, as Qwen2 does: equal to ours only where one is given.
WITH_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant<|im_end|>"
    "\n{% endif %}" + prompts.template("chatml")
)


@pytest.mark.parametrize("name", prompts.template_names())
def test_shipped_ones_are_their_own_twins(name) -> None:
    assert twin(name, TOKENS) == twin(prompts.template(name), TOKENS)


def test_llama_2s_own_spelling_is_recognised() -> None:
    assert twin(META_LLAMA_2, TOKENS) == twin("llama2", TOKENS)


@pytest.mark.parametrize(
    "source",
    [
        WITH_DEFAULT_SYSTEM,
        META_LLAMA_2.replace("message['content'].strip()", "message['content']"),
        META_LLAMA_2.replace(" + eos_token", ""),
        prompts.template("chatml").replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant'"),
    ],
)
def test_what_differs_anywhere_is_another_template(source) -> None:
    """Each is made of turns between fixed texts, so each has a Go template, of its own."""
    found = twin(source, TOKENS).text
    assert found not in {twin(name, TOKENS).text for name in STOPS}


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[-1]['content'] }}",
        prompts.template("chatml").replace("| trim", "| upper"),
        prompts.template("chatml").replace("| trim", "| replace('One', 'Two')"),
        prompts.template("chatml").replace("<|im_start|>'", "<|im_start|>' + loop.index|string"),
        prompts.template("llama2").replace("loop.first and system", "loop.last and system"),
        QWEN3,
    ],
)
def test_a_form_that_renders_anything_otherwise_is_none(source) -> None:
    assert prompts.form_of(source, "<s>", "</s>") is None


@pytest.mark.parametrize("name", FOREIGN)
def test_a_form_renders_what_its_template_does(name) -> None:
    source, eos, _ = FOREIGN[name]
    form = prompts.form_of(source, "<s>", eos)
    turns = [("user", "a\n1"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    system = [("system", "Be «brief».")] if form.system else []
    for count in (1, 2, 3, 4):
        for opening in ([], system):
            said = [{"role": r, "content": c} for r, c in [*opening, *turns[:count]]]
            asking = said[-1]["role"] == "user"
            text = prompts.render(
                said, source, bos_token="<s>", eos_token=eos, add_generation_prompt=asking
            )
            assert form.render(said) == text


def test_the_saved_template_counts_and_a_setting_that_differs_is_told(tmp_path, caplog) -> None:
    assert chosen(tmp_path, "alpaca") == prompts.template("alpaca")
    (tmp_path / "chat_template.jinja").write_text(META_LLAMA_2)
    assert chosen(tmp_path, "llama2") == chosen(tmp_path, "tokenizer") == META_LLAMA_2
    assert not caplog.text
    assert chosen(tmp_path, "alpaca") == META_LLAMA_2
    assert "its own chat template, which is not alpaca" in caplog.text


def test_older_folders_keep_theirs_in_the_config(tmp_path) -> None:
    def saved(template: object) -> str | None:
        content = {"chat_template": template} if template else {}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
        return own_template(tmp_path)

    assert saved(None) is None and saved("x") == "x"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert saved(several) == "d"
    with pytest.raises(SettingsError, match="has none"):
        saved(None)
        chosen(tmp_path, "tokenizer")
