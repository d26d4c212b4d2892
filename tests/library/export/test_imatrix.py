"""Importance matrices: llama.cpp's formats, our own sums, and what encoders make of them."""

import struct

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from slimtune.errors import InputError
from slimtune.export.architecture import read_architecture
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.imatrix import read_imatrix, write_imatrix
from slimtune.export.importance import observe
from slimtune.export.plan import Encoding, as_source
from slimtune.export.preflight import preflight
from slimtune.export.quant_types import choose_types
from slimtune.export.tensors import gguf_name
from slimtune.inference.stack import batches_of
from slimtune.models.weights import Checkpoint

NAME = "blk.0.ffn_up.weight"
SUMS = np.array([1.0, 4.0, 9.0], np.float32)


def write_dat(file, values=SUMS, calls=2, count=None) -> None:
    """The older format, as llama-imatrix --output-format dat lays it out."""
    name = NAME.encode()
    parts = [struct.pack("<ii", 1, len(name)), name]
    parts += [struct.pack("<ii", calls, count or len(values)), values.astype("<f4").tobytes()]
    parts += [struct.pack("<ii", 7, 8), b"text.txt"]
    file.write_bytes(b"".join(parts))


def test_the_older_format(tmp_path):
    write_dat(tmp_path / "imatrix.dat")
    found = read_imatrix(tmp_path / "imatrix.dat")
    assert found.weights[NAME].tolist() == [0.5, 2.0, 4.5]
    assert (found.file, found.dataset, found.chunks) == ("imatrix.dat", "text.txt", 7)


def test_what_we_write_is_read_again(tmp_path):
    write_imatrix(tmp_path / "i.gguf", {NAME: SUMS}, {NAME: 10}, "rows.jsonl", 5)
    found = read_imatrix(tmp_path / "i.gguf")
    assert found.weights[NAME] == pytest.approx(SUMS / 10)
    assert (found.dataset, found.chunks) == ("rows.jsonl", 2)
    assert gguf.GGUFReader(tmp_path / "i.gguf").fields["general.type"].contents() == "imatrix"


@pytest.mark.parametrize("spoil", ["cut", "other", "nan", "missing"])
def test_a_file_that_is_none_is_named(tmp_path, spoil):
    file = tmp_path / "imatrix.dat"
    write_dat(file, np.array([1, np.nan]) if spoil == "nan" else SUMS)
    if spoil == "cut":
        file.write_bytes(file.read_bytes()[:30])
    if spoil == "other":
        file.write_bytes(b"a text that is something else entirely" * 9)
    if spoil == "missing":
        file.unlink()
    with pytest.raises(InputError, match="no importance matrix"):
        read_imatrix(file)


def test_another_models_matrix_is_refused(llama, tmp_path):
    write_dat(tmp_path / "imatrix.dat")
    encoding = Encoding(importance=read_imatrix(tmp_path / "imatrix.dat"))
    with pytest.raises(InputError, match="another model's"):
        write_gguf(llama, tmp_path / "out.gguf", "Q4_K_M", encoding=encoding)


def test_sums_are_of_what_enters_each_layer(llama, tmp_path):
    """Against the activations themselves: norms before the projections, by hand for layer 0."""
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    rows = [[1, 5, 9, 12], [1, 7]]
    plan = preflight(llama, "F32")
    sums, counts, costs = observe(as_source(llama), plan, batches_of(rows), tmp_path)
    assert not costs
    assert set(counts.values()) == {6} and len(sums) == 14 and "output.weight" not in sums
    expected = torch.zeros(256)
    with torch.inference_mode():
        for row in rows:
            embedded = model.model.embed_tokens(torch.tensor(row))
            normed = embedded / (embedded.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            weight = model.model.layers[0].input_layernorm.weight
            expected += (normed * weight).square().sum(0)
    for name in ("attn_q", "attn_k", "attn_v"):
        assert sums[f"blk.0.{name}.weight"] == pytest.approx(expected.numpy(), rel=1e-4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "Q5_K_M"])
def test_the_columns_that_matter_lose_less(llama, tmp_path, kind):
    architecture = read_architecture(llama, Checkpoint(llama).config)
    name = "blk.1.ffn_up.weight"
    sums = {name: np.where(np.arange(256) % 4 == 0, 100.0, 0.01).astype(np.float32)}
    write_imatrix(tmp_path / "i.gguf", sums, {name: 1}, "x", 1)
    encoding = Encoding(importance=read_imatrix(tmp_path / "i.gguf"))
    write_gguf(llama, tmp_path / "plain.gguf", kind)
    write_gguf(llama, tmp_path / "weighted.gguf", kind, encoding=encoding)
    wanted = Checkpoint(llama).read_float32("model.layers.1.mlp.up_proj.weight")
    assert gguf_name(architecture, "model.layers.1.mlp.up_proj.weight") == name

    def error(file: str) -> float:
        tensor = next(t for t in gguf.GGUFReader(tmp_path / file).tensors if t.name == name)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return float(((found - wanted)[:, ::4] ** 2).sum())

    assert error("weighted.gguf") < 0.8 * error("plain.gguf")


def test_old_types_guard_their_first_layers_when_importance_is_known():
    shapes = {f"blk.{i}.ffn_down.weight": (256, 256) for i in range(16)}
    shapes |= {"output.weight": (400, 256)}
    for name, guarded in (("Q4_0", "Q4_1"), ("Q5_0", "Q5_1")):
        plain = choose_types(shapes, name)
        known = choose_types(shapes, name, importance=True)
        changed = {n for n in shapes if plain[n] != known[n]}
        assert changed == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
        assert {known[n].type.name for n in changed} == {guarded}
