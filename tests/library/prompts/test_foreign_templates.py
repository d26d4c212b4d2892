"""Templates that others wrote, and tokenizers that others saved: told apart, or used rightly."""

import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.errors import InputError, SettingsError
from slimtune.models import tokenizers

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "天气很好。"},
    {"role": "user", "content": "is it"},
    {"role": "assistant", "content": "an answer"},
]
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + (m.role if m.role == 'user' else 'model') + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for m in loop_messages %}"
    "{% set content = '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def with_bos(byte_level_tokenizer, tmp_path) -> PreTrainedTokenizerFast:
    """As Llama-3's: byte-level BPE whose tokenizer.json puts BOS in front by itself."""
    byte_level_tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    bos = content["added_tokens"][0]
    processor = TemplateProcessing(
        single=f"{bos['content']} $A", special_tokens=[(bos["content"], bos["id"])]
    )
    content["post_processor"] = json.loads(processor.__getstate__())
    file.write_text(json.dumps(content), encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"bos_token": bos["content"], "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizers.load_tokenizer(tmp_path)


@pytest.mark.parametrize("template", [LLAMA3, *map(prompts.template, prompts.template_names())])
@pytest.mark.parametrize("messages", [TURNS, [SYSTEM, *TURNS], TURNS[:2]])
def test_bos_by_template_and_by_tokenizer_is_one_bos(with_bos, template, messages):
    assert with_bos("x").input_ids[0] == with_bos.bos_token_id
    ids = prompts.encode(with_bos, messages, template)["input_ids"]
    assert ids[0] == with_bos.bos_token_id != ids[1]
    asked = prompts.encode_prompt(with_bos, messages, template)
    assert asked == ids[: len(asked)] and len(asked) < len(ids)


def test_bos_by_the_tokenizer_alone_is_put_in_front(with_bos):
    ids = prompts.encode(with_bos, TURNS, LLAMA3.replace("bos_token", "''"))["input_ids"]
    assert ids[0] == with_bos.bos_token_id != ids[1]


def test_a_saved_tokenizer_with_bos_gives_the_same_ids(with_bos, tmp_path):
    tokenizers.save_tokenizer(with_bos, tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    again = tokenizers.load_tokenizer(tmp_path / "saved")
    for template in (LLAMA3, prompts.template("llama2")):
        encoded = prompts.encode(with_bos, TURNS, template)
        assert encoded == prompts.encode(again, TURNS, template)
        assert encoded == prompts.encode(plain, TURNS, template)


def test_a_template_without_a_system_role_says_so():
    assert "model\n天气很好。<end_of_turn>" in prompts.render(TURNS, GEMMA, **TOKENS)
    with pytest.raises(InputError, match="System role not supported"):
        prompts.render([SYSTEM, *TURNS], GEMMA, **TOKENS)


def test_an_end_token_that_is_no_token_is_refused(sentencepiece_tokenizer):
    """Gemma's template on a Llama tokenizer: <end_of_turn> would be eleven ordinary pieces."""
    with pytest.raises(SettingsError, match="answers have no end"):
        prompts.encode(sentencepiece_tokenizer, TURNS, GEMMA)


def test_marks_for_other_trainers_change_nothing():
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    marked = plain.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    assert prompts.render(TURNS, marked, **TOKENS) == prompts.render(TURNS, plain, **TOKENS)
    assert prompts.pieces(TURNS, marked, **TOKENS) == prompts.pieces(TURNS, plain, **TOKENS)


def test_rendering_equals_transformers(with_bos):
    """Blocks, blanks and JSON in jinja as transformers renders them."""
    odd = (
        "{%- for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}{% endif %}\n"
        "    {{ m | tojson }}{{ m | tojson(indent=2) }}{{ eos_token }}\n{% endfor %}\n"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}&{% endfor %}"
    )
    tokens = {"bos_token": with_bos.bos_token, "eos_token": with_bos.eos_token}
    for template in (odd, LLAMA3, *map(prompts.template, prompts.template_names())):
        with_bos.chat_template = template
        expected = with_bos.apply_chat_template([SYSTEM, *TURNS], tokenize=False)
        assert prompts.render([SYSTEM, *TURNS], template, **tokens) == expected


@pytest.mark.parametrize(
    "forgetful", ["{{ messages[-1].content }}", "{% if messages %}x{% endif %}"]
)
def test_a_template_that_rewrites_earlier_turns_is_refused(forgetful):
    with pytest.raises(SettingsError, match="earlier turns change"):
        prompts.pieces(TURNS, "{{ messages | length }}" + forgetful, **TOKENS)
