"""What cannot be unpacked faithfully is refused by name, and leaves nothing behind."""

import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_bpe import write_bpe_llama
from tiny_folders import write_tiny_llama
from tiny_ggufs import changed

from slimtune.config import Config, ModelSection
from slimtune.errors import ExitCode, InputError
from slimtune.export.gguf_writer import write_gguf
from slimtune.models.gguf_header import read_gguf
from slimtune.unpacking.gguf_weights import require_tensors
from slimtune.unpacking.unpack import plan_unpacking, unpacked

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = write_bpe_llama(tmp_path_factory.mktemp("models") / "m", rope_parameters=LLAMA3)
    write_gguf(folder, folder.with_suffix(".gguf"), "F32")
    return folder.with_suffix(".gguf")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def refused(file: Path, words: str) -> InputError:
    config = Config(model=ModelSection(unpacked_dir=file.parent / "unpacked"))
    with pytest.raises(InputError, match=words) as error:
        unpacked(file, "m", config)
    assert error.value.exit_code == ExitCode.INPUT
    assert error.value.cure
    assert not (file.parent / "unpacked" / "m").exists()
    return error.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama__expert_count": 8}, "does not know"),
        ({"llama__attention__scale": 0.5}, "does not know"),
        ({"llama__attention__head_count_kv": [2, 2]}, "does not know"),
        ({"llama__rope__dimension_count": 8}, "does not know"),
        ({"llama__rope__scaling__type": "longrope"}, "does not know"),
        ({"llama__block_count": 3}, "damaged"),
        ({"llama__block_count": 2**31 - 1}, "damaged"),
        ({"llama__block_count": 1}, "holds blk.1."),
        ({"llama__attention__head_count": 0}, "damaged"),
        ({"llama__embedding_length": 128}, "does not know|damaged"),
        ({"llama__context_length": None}, "damaged"),
        ({"tokenizer__ggml__model": "t5"}, "a vocabulary of the kind t5"),
        ({"tokenizer__ggml__pre": "tekken"}, "the rule tekken"),
        ({"tokenizer__ggml__pre": None}, "the rule"),
        ({"tokenizer__ggml__eos_token_id": 10**6}, "damaged"),
        ({"tokenizer__ggml__eos_token_id": None}, "names no EOS"),
        ({"tokenizer__ggml__tokens": ["a"] * 500}, "damaged"),
        ({"tokenizer__ggml__tokens": ["a" * 10**6] * 3}, "damaged"),
        ({"tokenizer__ggml__merges": ["not known"]}, "damaged"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "damaged"),
    ],
)
def test_metadata_that_would_make_another_model(changes, words, whole, tmp_path) -> None:
    error = refused(changed(whole, tmp_path / "x.gguf", **changes), words)
    key = next(iter(changes)).replace("__", ".")
    if words == "does not know":
        assert key in str(error) or "rope" in str(error)


def test_an_architecture_is_refused_by_its_name(tmp_path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma3")
    writer.add_token_list([b"a"])
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    error = refused(tmp_path / "x.gguf", "the architecture gemma3")
    assert "llama, qwen2" in error.why


def test_factors_of_another_scaling_are_refused(whole, tmp_path) -> None:
    data = bytearray(whole.read_bytes())
    tensor = read_gguf(whole).tensors["rope_freqs.weight"]
    data[tensor.offset : tensor.offset + 4] = struct.pack("<f", 3.5)
    (tmp_path / "x.gguf").write_bytes(data)
    assert "rope_freqs.weight" in refused(tmp_path / "x.gguf", "does not know").why


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(name, whole, tmp_path) -> None:
    file = changed(whole, tmp_path / "x.gguf", without=(name,))
    assert name in refused(file, "damaged").why


@pytest.mark.parametrize("kind", ["Q8_K", "Q8_1", "I8"])
def test_a_type_without_a_way_back_is_named(kind, whole) -> None:
    plan = plan_unpacking(read_gguf(whole))
    name = "blk.1.ffn_down.weight"
    odd = replace(plan.header.tensors[name], kind=gguf.GGMLQuantizationType[kind])
    header = replace(plan.header, tensors=plan.header.tensors | {name: odd})
    with pytest.raises(InputError, match=f"{name} is {kind}"):
        require_tensors(header, plan.architecture)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value, whole, tmp_path) -> None:
    data = bytearray(whole.read_bytes())
    tensor = read_gguf(whole).tensors["blk.0.attn_q.weight"]
    data[tensor.offset : tensor.offset + 4] = struct.pack("<f", value)
    (tmp_path / "x.gguf").write_bytes(data)
    assert "blk.0.attn_q.weight" in refused(tmp_path / "x.gguf", "damaged").why


def test_what_float16_cannot_hold_is_refused(tmp_path) -> None:
    """A scale of 65,000 times a quant of 127."""
    folder = write_tiny_llama(tmp_path / "model", hidden=64)
    write_gguf(folder, tmp_path / "m.gguf", "Q8_0")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    tensor = read_gguf(tmp_path / "m.gguf").tensors["blk.0.ffn_up.weight"]
    data[tensor.offset : tensor.offset + 3] = np.float16(65000).tobytes() + b"\x7f"
    (tmp_path / "x.gguf").write_bytes(data)
    assert "no float16 is" in refused(tmp_path / "x.gguf", "damaged").why


def test_a_cut_file_is_refused(whole, tmp_path) -> None:
    (tmp_path / "x.gguf").write_bytes(whole.read_bytes()[:-100])
    refused(tmp_path / "x.gguf", "damaged")
