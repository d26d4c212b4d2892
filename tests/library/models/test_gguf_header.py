"""A GGUF's header: read as gguf-py writes it, and never believed where it does not add up."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from slimtune.errors import InputError
from slimtune.models.gguf_header import is_gguf, read_gguf

TENSOR = np.arange(64, dtype=np.float32).reshape(2, 32)


def written(file: Path, *, architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(3)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_token_list([b"a", b"\xff", "您".encode()])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", TENSOR)
    writer.add_tensor("other.weight", gguf.quants.quantize(TENSOR, gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int, entries: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + body


def tensor(name: bytes = b"a", sizes=(32,), kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<{len(sizes)}Q", *sizes)
    return text(name) + struct.pack("<I", len(sizes)) + shape + struct.pack("<IQ", kind, offset)


def array(kind: int, count: int, key: bytes = b"k") -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, count)


def test_it_reads_what_gguf_py_writes(tmp_path):
    found = read_gguf(written(tmp_path / "m.gguf"))
    assert found.architecture == "llama" and found.template == "{{ messages }}"
    assert found.metadata["llama.block_count"] == 3
    assert list(found.metadata["some.numbers"]) == [1, 2, 3]
    assert found.metadata["tokenizer.ggml.tokens"] == [b"a", b"\xff", "您".encode()]
    plain, packed = found.tensors["token_embd.weight"], found.tensors["other.weight"]
    assert plain.shape == packed.shape == (2, 32) and found.parameters == 128
    assert packed.kind.name == "Q8_0" and packed.nbytes == 2 * 34
    data = (tmp_path / "m.gguf").read_bytes()
    assert data[plain.offset : plain.offset + plain.nbytes] == TENSOR.tobytes()


HOSTILE = {
    "huge tensor count": header(2**60, 0),
    "huge entry count": header(0, 2**63),
    "more tensors than bytes": header(1000, 0, bytes(64)),
    "array of 2^61 texts": header(0, 1, array(8, 2**61)),
    "array of 2^40 numbers": header(0, 1, array(0, 2**40)),
    "array of arrays": header(0, 1, array(9, 1) + bytes(64)),
    "text of 2^62 bytes": header(0, 1, struct.pack("<Q", 2**62) + bytes(32)),
    "unknown value type": header(0, 1, text(b"k") + struct.pack("<I", 77) + bytes(16)),
    "ends in a key": header(0, 1, struct.pack("<Q", 40) + bytes(20)),
    "a key twice": header(0, 2, 2 * (text(b"k") + struct.pack("<II", 4, 1))),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1": header(0, 0, version=1),
    "nine dimensions": header(1, 0, tensor(sizes=(1,) * 9)),
    "no dimension": header(1, 0, tensor(sizes=()) + bytes(32)),
    "a size of 0": header(1, 0, tensor(sizes=(0, 4))),
    "sizes beyond 2^64": header(1, 0, tensor(sizes=(2**63, 2**63))),
    "half a block": header(1, 0, tensor(sizes=(33,), kind=8) + bytes(64)),
    "unknown tensor type": header(1, 0, tensor(kind=999) + bytes(256)),
    "offset beyond the end": header(1, 0, tensor(offset=2**62) + bytes(256)),
    "one over another": header(2, 0, tensor() + tensor(b"b") + bytes(512)),
    "a tensor twice": header(2, 0, tensor() + tensor(offset=128) + bytes(512)),
    "a name that a terminal obeys": header(1, 0, tensor(b"a\x1b[2J") + bytes(256)),
    "truncated data": header(1, 0, tensor(sizes=(32, 1000))),
    "alignment 0": header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "a part of a split model": header(0, 1, text(b"split.count") + struct.pack("<II", 4, 3)),
    "empty after the magic": b"GGUF",
    "another format": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_at_once_and_in_little_memory(tmp_path, what):
    (tmp_path / "x.gguf").write_bytes(HOSTILE[what])
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read_gguf(tmp_path / "x.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert "x.gguf" in error.value.what and error.value.cure


def test_every_truncation_of_a_good_file_is_refused(tmp_path):
    whole = written(tmp_path / "m.gguf").read_bytes()
    end = max(one.offset + one.nbytes for one in read_gguf(tmp_path / "m.gguf").tensors.values())
    for length in [*range(4, end, 7), end - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_gguf(tmp_path / "cut.gguf")


def test_a_type_without_a_name_is_told_by_its_number(tmp_path):
    (tmp_path / "x.gguf").write_bytes(HOSTILE["unknown tensor type"])
    with pytest.raises(InputError, match="type number 999"):
        read_gguf(tmp_path / "x.gguf")


def test_a_file_without_suffix_is_known_by_its_first_bytes(tmp_path):
    written(tmp_path / "m.gguf").rename(tmp_path / "sha256-00")
    (tmp_path / "text").write_text("GGU")
    assert is_gguf(tmp_path / "sha256-00") and is_gguf("not/there.gguf")
    assert not is_gguf(tmp_path / "text") and not is_gguf(tmp_path) and not is_gguf("owner/name")
