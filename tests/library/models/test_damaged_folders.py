"""A damaged file in a model folder is bad input (exit 3), named in the error, in every script."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import refused

pytestmark = pytest.mark.usefixtures("in_process")
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# A value of another kind for keys of each file.
WRONG = {
    "config.json": {
        "model_type": 7,
        "hidden_size": "64",
        "num_hidden_layers": [2],
        "num_attention_heads": 2.5,
        "rms_norm_eps": "small",
        "tie_word_embeddings": "no",
        "rope_parameters": [],
        "eos_token_id": "2",
    },
    "generation_config.json": {"eos_token_id": "</s>", "temperature": "hot", "do_sample": 3},
    "tokenizer_config.json": {
        "eos_token": 2,
        "bos_token": {"text": "<s>"},
        "model_max_length": "long",
        "add_bos_token": "yes",
        "chat_template": 5,
        "added_tokens_decoder": ["<s>"],
    },
    "tokenizer.json": {"model": [], "added_tokens": {"<s>": 1}},
    "special_tokens_map.json": {"eos_token": 2},
}
KEYS = [(file, key) for file, keys in WRONG.items() for key in keys]

SCRIPTS = {
    "evaluate_model": ("--base-model", "--lora-model", "null"),
    "train_lora": ("--base-model",),
    "convert_to_gguf": ("--model-path",),
    "model_pruning": ("--model-path",),
}


def cut(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: len(text) // 2], encoding="utf-8")


def no_json(file: Path) -> None:
    file.write_text("<html>404: not found</html>\n")


def no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00\x00" * 8)


def a_list(file: Path) -> None:
    file.write_text("[1, 2, 3]\n")


def empty(file: Path) -> None:
    file.write_text("")


DAMAGES = (cut, no_json, no_text, a_list, empty)


@pytest.fixture
def folder(project, tmp_path) -> Path:
    """A copy of the base model with every file there is, those that transformers 5 no longer writes
    included."""
    folder = shutil.copytree(project / "base", tmp_path / "model")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}\n')
    (folder / "added_tokens.json").write_text("{}\n")
    return folder


def words(script: str, folder: Path, settings: tuple, tmp_path: Path) -> list[object]:
    flag, *more = SCRIPTS[script]
    outputs = {
        "evaluate_model": ("--output", tmp_path / "out" / "r.csv"),
        "train_lora": ("--output-dir", tmp_path / "out"),
        "convert_to_gguf": ("--output-dir", tmp_path / "out"),
        "model_pruning": ("--output-dir", tmp_path / "out"),
    }
    return [*settings, flag, folder, *more, *outputs[script]]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_damaged_file_is_bad_input(
    script: str,
    file: str,
    damage: Callable[[Path], None],
    folder: Path,
    rows: Path,
    settings,
    tmp_path,
) -> None:
    damage(folder / file)
    refused(3, f"{file}: ", script, *words(script, folder, settings, tmp_path))
    assert not list((tmp_path / "out").rglob("*.gguf"))


@pytest.mark.parametrize(("file", "key"), KEYS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_key_of_another_kind_is_bad_input(
    script: str, file: str, key: str, folder: Path, rows: Path, settings, tmp_path
) -> None:
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    content[key] = WRONG[file][key]
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    error = refused(3, f"{file}: {key}", script, *words(script, folder, settings, tmp_path))
    assert "it must be" in error[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_chat_template_that_is_no_text_is_bad_input(
    script: str, folder: Path, rows: Path, settings, tmp_path
) -> None:
    no_text(folder / "chat_template.jinja")
    refused(3, "chat_template.jinja: ", script, *words(script, folder, settings, tmp_path))
