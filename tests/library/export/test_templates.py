"""Which template counts in an export, and when a foreign one is one of ours in other words."""

import json

import pytest

from slimtune import prompts
from slimtune.console import SettingsError
from slimtune.export.modelfile import chosen, own_template, twin

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
    assert twin(name) == twin(prompts.template(name)) == name


# As the models' own repositories have them.
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SPELLINGS = {
    "llama2": META_LLAMA_2,
    "llama3": LLAMA_3,
    "qwen2": QWEN_2,
    "qwen2_5": QWEN_2.replace("You are a helpful assistant.", QWEN),
    "zephyr": ZEPHYR,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_another_spelling_of_a_template_is_recognised(name) -> None:
    assert twin(SPELLINGS[name]) == name


@pytest.mark.parametrize(
    "source",
    [
        WITH_DEFAULT_SYSTEM,
        META_LLAMA_2.replace("message['content'].strip()", "message['content']"),
        META_LLAMA_2.replace(" + eos_token", ""),
        prompts.template("chatml").replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant'"),
    ],
)
def test_what_differs_anywhere_is_no_twin(source) -> None:
    with pytest.raises(SettingsError, match="no twin"):
        twin(source)


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
