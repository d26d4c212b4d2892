"""The file of an adapter and that of a base: what fits, what does not, what nobody knows."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from slimtune.artifacts.files import seal
from slimtune.errors import InputError
from slimtune.inference.gguf_tokenizer import tokens_of
from slimtune.models.gguf_adapter import require_adapter_of
from slimtune.models.gguf_header import read_gguf
from slimtune.models.origin import FINGERPRINT, MODEL_FINGERPRINT

BASE = {
    "token_embd.weight": (40, 32),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.ffn_up.weight": (64, 32),
}
# (A, B) of each; an embedding's A is transposed, and its B makes the columns
PAIRS = {
    "token_embd.weight": ((40, 4), (32, 4)),
    "blk.0.attn_q.weight": ((4, 32), (32, 4)),
    "blk.0.ffn_up.weight": ((4, 32), (64, 4)),
}


def written(
    file: Path, shapes: dict[str, tuple[int, ...]], *, architecture: str = "llama", **keys: str
) -> Path:
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in keys.items():
        writer.add_string(key.replace("__", "."), value)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def adapter_of(file: Path, pairs: dict = PAIRS, **keys: str) -> Path:
    shapes = {
        f"{name}.lora_{end}": shape
        for name, pair in pairs.items()
        for end, shape in zip("ab", pair, strict=True)
    }
    return written(file, shapes, **{"general__type": "adapter", "adapter__type": "lora"} | keys)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tmp_path / "base.gguf", BASE)


def recorded(file: Path, **metrics: object) -> Path:
    """`file` with the record that a stage of ours would leave beside it."""
    folder = file.with_name(f"{file.stem} alone")
    folder.mkdir()
    shutil.copyfile(file, folder / file.name)
    run = {
        "run_id": file.stem, "stage": "convert_to_gguf", "started": "now", "seconds": 1.0,
        "peak_memory_bytes": 1, "command": ["convert_to_gguf.py"], "settings": {}, "inputs": [],
        "files": seal(folder, without=""), "metrics": metrics, "versions": {}, "machine": "",
        "git_commit": None,
    }  # fmt: skip
    file.with_name(f"{file.stem}_run.json").write_text(json.dumps(run))
    return file


def test_one_that_fits_passes_and_it_is_said_that_nobody_knows(base, tmp_path, caplog):
    require_adapter_of(adapter_of(tmp_path / "lora.gguf"), read_gguf(base))
    assert "not known whether it was trained on" in caplog.text


@pytest.mark.parametrize(
    ("weight", "pair"),
    [
        ("blk.0.attn_q.weight", ((4, 16), (32, 4))),
        ("blk.0.attn_q.weight", ((4, 32), (16, 4))),
        ("blk.0.attn_q.weight", ((4, 32), (32, 2))),
        ("blk.0.attn_q.weight", ((32, 4), (32, 4))),
        ("blk.0.ffn_up.weight", ((4, 64), (32, 4))),
        ("token_embd.weight", ((4, 40), (32, 4))),
        ("token_embd.weight", ((40, 4), (40, 4))),
        ("blk.9.attn_q.weight", ((4, 32), (32, 4))),
    ],
)
def test_another_bases_weights_are_named(base, tmp_path, weight, pair):
    lora = adapter_of(tmp_path / "lora.gguf", PAIRS | {weight: pair})
    with pytest.raises(InputError, match="another base") as error:
        require_adapter_of(lora, read_gguf(base))
    assert weight in error.value.why


def test_half_a_pair_is_named(base, tmp_path):
    keys = {"general__type": "adapter", "adapter__type": "lora"}
    lora = written(tmp_path / "lora.gguf", {"blk.0.attn_q.weight.lora_a": (4, 32)}, **keys)
    with pytest.raises(InputError, match="another base") as error:
        require_adapter_of(lora, read_gguf(base))
    assert "no .lora_b" in error.value.why


def test_another_architecture_is_named(base, tmp_path):
    lora = adapter_of(tmp_path / "lora.gguf", architecture="qwen2")
    with pytest.raises(InputError, match="another base") as error:
        require_adapter_of(lora, read_gguf(base))
    assert error.value.why == "it is for qwen2, the base is llama"


def test_what_is_no_adapter_is_named(base, tmp_path):
    other = written(tmp_path / "other.gguf", BASE, general__type="model")
    with pytest.raises(InputError, match=r"other\.gguf: no adapter"):
        require_adapter_of(other, read_gguf(base))
    lora = adapter_of(tmp_path / "lora.gguf", adapter__type="ia3")
    with pytest.raises(InputError, match="no LoRA adapter"):
        require_adapter_of(lora, read_gguf(base))
    keys = {"general__type": "adapter", "adapter__type": "lora"}
    whole = written(tmp_path / "whole.gguf", {"output.weight": (40, 32)}, **keys)
    with pytest.raises(InputError, match="no LoRA adapter") as error:
        require_adapter_of(whole, read_gguf(base))
    assert "output.weight" in error.value.why
    with pytest.raises(InputError, match="a folder") as error:
        require_adapter_of(tmp_path, read_gguf(base))
    assert "--lora-as adapter" in error.value.cure


def test_an_adapter_alone_is_no_model(tmp_path):
    with pytest.raises(InputError, match="no model of its own") as error:
        tokens_of(read_gguf(adapter_of(tmp_path / "lora.gguf")))
    assert "BASE.gguf+" in error.value.cure


def test_the_same_shapes_do_not_make_the_same_base(base, tmp_path, caplog):
    lora = recorded(adapter_of(tmp_path / "lora.gguf"), **{FINGERPRINT: "a" * 16})
    require_adapter_of(lora, read_gguf(base))
    assert "base.gguf keeps no fingerprint" in caplog.text
    caplog.clear()
    recorded(base, **{MODEL_FINGERPRINT: "a" * 16})
    require_adapter_of(lora, read_gguf(base))
    assert not caplog.text
    another = recorded(written(tmp_path / "another.gguf", BASE), **{MODEL_FINGERPRINT: "b" * 16})
    with pytest.raises(InputError, match="another base") as error:
        require_adapter_of(lora, read_gguf(another))
    assert "the weights are not" in error.value.why
