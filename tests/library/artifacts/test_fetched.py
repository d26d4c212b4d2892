"""A Git LFS pointer is named for what it is wherever data, weights or a tokenizer are opened."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slimtune.artifacts.files import read_json, require_fetched
from slimtune.data.sources import recognise
from slimtune.errors import InputError
from slimtune.export.imatrix import read_imatrix
from slimtune.models.folders import read_template
from slimtune.models.gguf_header import require_gguf
from slimtune.models.headers import read_header
from slimtune.models.json_files import require_whole
from slimtune.models.sentencepiece_bpe import read_sentencepiece

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OPENED: dict[str, Callable[[Path], object]] = {
    "rows.parquet": lambda file: recognise(file, file.name, "parquet"),
    "rows.json": lambda file: recognise(file, file.name),
    "model.safetensors": read_header,
    "config.json": read_json,
    "tokenizer.json": require_whole,
    "tokenizer.model": read_sentencepiece,
    "chat_template.jinja": lambda file: read_template(file.parent),
    "model.gguf": require_gguf,
    "imatrix.dat": read_imatrix,
}


@pytest.mark.parametrize("name", OPENED)
def test_a_pointer_is_no_file(tmp_path, name) -> None:
    file = tmp_path / name
    file.write_text(POINTER)
    with pytest.raises(InputError) as caught:
        OPENED[name](file)
    assert name in caught.value.what and "Git LFS pointer" in caught.value.what
    assert "git lfs pull" in caught.value.cure


def test_a_file_that_tells_of_pointers_is_none(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "version https://git-lfs?", "answer": "spec/v1"}\n')
    require_fetched(file)
    assert recognise(file, file.name).format == "jsonl"
