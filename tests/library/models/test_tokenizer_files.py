"""Whether BOS stands before a text: the files say what the loaded tokenizer does."""

import json
import shutil
from pathlib import Path

import pytest
import spm_cases
from foreign_chat_templates import QWEN2
from tiny_folders import write_tiny_llama
from tiny_pipelines import byte_level, edit_json

from slimtune import prompts
from slimtune.errors import InputError
from slimtune.models import tokenizers
from slimtune.models.tokenizer_files import put_before, read_head, special_tokens, template_facts

IM = "<|im_start|>"
PROCESSORS = {
    "nothing": None,
    "offsets": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
}


def bpe(folder: Path, **arguments: object) -> Path:
    tokenizers.save_tokenizer(byte_level(**arguments), folder)
    return folder


def agrees(folder: Path) -> bool:
    """What the files say, compared with what the tokenizer does."""
    loaded = tokenizers.load_tokenizer(folder)
    said = special_tokens(folder).puts_bos
    assert prompts.puts_bos(loaded) == said
    assert special_tokens(folder, [b"</s>"]).eos == loaded.eos_token
    assert template_facts(folder)[:2] == (loaded.chat_template, said)
    assert all(token in loaded.get_vocab() for token in template_facts(folder).tokens)
    return said


@pytest.mark.parametrize(
    ("bos", "puts"), [(None, False), (IM, False), (IM, True), ("<|endoftext|>", False)]
)
def test_a_bos_that_is_named_is_not_one_that_is_put_in_front(bos, puts, tmp_path) -> None:
    folder = bpe(tmp_path, bos=bos, puts_bos=puts)
    assert agrees(folder) == puts
    assert special_tokens(folder).bos == (bos or "")


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("said", [None, True, False])
def test_a_tokenizer_json_overrules_what_the_config_says(name, said, tmp_path) -> None:
    """transformers drops add_bos_token where there is a tokenizer.json."""
    folder = bpe(tmp_path, bos=IM)
    edit_json(folder / "tokenizer.json", post_processor=PROCESSORS[name])
    edit_json(folder / "tokenizer_config.json", add_bos_token=said)
    assert not agrees(folder)


@pytest.mark.parametrize(("said", "puts"), [(True, True), (False, False), (None, True)])
def test_with_a_sentencepiece_model_the_config_decides(said, puts, tmp_path) -> None:
    folder = write_tiny_llama(tmp_path, hidden=64)
    edit_json(folder / "tokenizer_config.json", add_bos_token=said)
    assert agrees(folder) == puts


@pytest.mark.parametrize("name", spm_cases.NAMES)
def test_files_with_a_sentencepiece_model_begin_with_bos(name, tmp_path) -> None:
    folder = shutil.copytree(spm_cases.cases(name).folder, tmp_path / name)
    assert agrees(folder)
    if (folder / "tokenizer.json").is_file():
        assert put_before(read_head(folder / "tokenizer.json")) == ["<s>"]


def test_an_eos_after_the_text_is_nothing_before_it(tmp_path) -> None:
    folder = bpe(tmp_path, bos=IM, puts_bos=True)
    processor = json.loads((folder / "tokenizer.json").read_text())["post_processor"]
    end = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    processor["single"].append(end)
    processor["special_tokens"]["<|im_end|>"] = {
        "id": "<|im_end|>",
        "ids": [2],
        "tokens": ["<|im_end|>"],
    }
    edit_json(folder / "tokenizer.json", post_processor=processor)
    assert agrees(folder)


def test_other_tokens_before_a_text_are_refused_by_name(tmp_path) -> None:
    folder = bpe(tmp_path, bos=IM, puts_bos=True)
    edit_json(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    with pytest.raises(InputError, match=r"puts <\|im_start\|> before every text"):
        special_tokens(folder)


def test_the_end_is_what_the_template_writes_after_an_answer(tmp_path) -> None:
    """Qwen's base models name <|endoftext|> as EOS: their GGUF ended in exit 5."""
    loaded = byte_level("qwen2")
    loaded.chat_template = QWEN2
    tokenizers.save_tokenizer(loaded, tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert not agrees(tmp_path)
    found = special_tokens(tmp_path)
    assert (found.eos, found.named_eos) == ("<|im_end|>", "<|endoftext|>")
