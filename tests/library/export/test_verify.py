"""The proof holds for faithful files and fails for each way a file can differ from its model."""

import re
import shutil

import gguf
import pytest
import spm_cases
from safetensors.torch import load_file, save_file
from tiny_folders import write_tiny_llama

from slimtune import prompts
from slimtune.errors import InputError, QualityError
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.proof import reference
from slimtune.export.proof import verify as room
from slimtune.export.proof.reference import build_reference
from slimtune.export.proof.verify import verify
from slimtune.inference import llama_cpp
from slimtune.models import tokenizers
from slimtune.models.weights import copy_companions

ROWS = [
    [{"role": "user", "content": f"The cat sat {n} times?"}, {"role": "assistant", "content": a}]
    for n, a in [(1, "Yes."), (2, "今天天气很好"), (3, "    return 3.14")]
] + [[{"role": "system", "content": "Write."}, {"role": "user", "content": "area"}]]
TEMPLATE = prompts.template("llama2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("sharp"), initializer_range=0.3)


def prove(folder, kind: str, tmp_path, **options: object) -> room.GgufProof:
    file = tmp_path / f"{kind}.gguf"
    if not file.exists():
        write_gguf(folder, file, kind)
    options = {"compared": 4, "max_new_tokens": 10} | options
    return verify(file, build_reference(folder, ROWS, TEMPLATE, **options), kind, threads=1)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_exact_types_say_the_same(folder, tmp_path, kind):
    proof = prove(folder, kind, tmp_path)
    assert proof.prompts == proof.rows == 4
    assert proof.agreement > 0.9
    assert proof.nll_gguf == pytest.approx(proof.nll_reference, rel=1e-3)


def test_a_head_pruned_llama_is_a_mistral_and_converts(tmp_path):
    """3 heads of 64 at hidden 256: what pruning leaves when it cuts a head."""
    folder = write_tiny_llama(
        tmp_path / "model",
        mistral=True,
        sliding_window=None,
        head_dim=64,
        num_attention_heads=3,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    assert prove(folder, "F32", tmp_path, compared=2).agreement > 0.9


def test_quantised_types_report_their_loss(folder, tmp_path):
    proof = prove(folder, "Q8_0", tmp_path)
    assert 0.3 < proof.agreement <= 1
    assert proof.nll_gguf == pytest.approx(proof.nll_reference, rel=0.02)


def test_no_rows_compare_ids_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "load_source", lambda *_, **__: pytest.fail("loaded the model"))
    proof = prove(folder, "F16", tmp_path, compared=0)
    assert proof == room.GgufProof(prompts=4, texts=29, rows=0)
    with pytest.raises(InputError, match="nothing to prove"):
        verify(tmp_path / "F16.gguf", build_reference(folder, [], TEMPLATE, compared=0), "F16")


def test_other_weights_are_found_by_text_or_likelihood(folder, tmp_path):
    other = write_tiny_llama(tmp_path / "other", initializer_range=0.4)
    write_gguf(other, tmp_path / "F16.gguf", "F16")
    with pytest.raises(QualityError, match="answers .* differently"):
        prove(folder, "F16", tmp_path)
    write_gguf(other, tmp_path / "Q8_0.gguf", "Q8_0")
    with pytest.raises(QualityError, match="likelihood of answers differs by"):
        prove(folder, "Q8_0", tmp_path)


def test_rows_out_of_order_are_found(folder, tmp_path):
    """The q projection without llama.cpp's order of rows: a file that loads and talks nonsense."""
    shuffled = tmp_path / "shuffled"
    copy_companions(folder, shuffled)
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    state[name] = state[name].unflatten(0, (4, 32, 2)).transpose(1, 2).flatten(0, 2).contiguous()
    save_file(state, shuffled / "model.safetensors", metadata={"format": "pt"})
    write_gguf(shuffled, tmp_path / "F32.gguf", "F32")
    with pytest.raises(QualityError, match="differently"):
        prove(folder, "F32", tmp_path)


def test_other_ids_are_found(folder, tmp_path):
    write_gguf(folder, tmp_path / "F16.gguf", "F16")
    reader = gguf.GGUFReader(tmp_path / "F16.gguf", "r+")
    reader.fields["tokenizer.ggml.add_bos_token"].parts[-1][0] = False
    del reader
    with pytest.raises(QualityError, match="prompt 1 becomes other tokens") as caught:
        prove(folder, "F16", tmp_path)
    assert re.search(r"training has \['<s>'", caught.value.why)


def test_another_end_token_is_found_even_without_a_reference(folder, tmp_path):
    write_gguf(folder, tmp_path / "F16.gguf", "F16")
    reader = gguf.GGUFReader(tmp_path / "F16.gguf", "r+")
    reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 5
    del reader
    with pytest.raises(QualityError, match="its end token is 5, training's is 2"):
        prove(folder, "F16", tmp_path, compared=0)


def test_a_file_that_llama_cpp_cannot_load_is_a_failed_proof(folder, tmp_path):
    write_gguf(folder, tmp_path / "F16.gguf", "F16")
    data = (tmp_path / "F16.gguf").read_bytes()
    (tmp_path / "F16.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(QualityError, match="the proof failed") as caught:
        prove(folder, "F16", tmp_path)
    assert "cannot load" in caught.value.why


def test_the_folder_may_move(folder, tmp_path):
    """Nothing in the file or the proof depends on where the model lay."""
    shutil.copytree(folder, tmp_path / "moved")
    write_gguf(tmp_path / "moved", tmp_path / "a.gguf", "F16", name="x")
    write_gguf(folder, tmp_path / "b.gguf", "F16", name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_biases_are_written_and_ordered_too(tmp_path):
    folder = write_tiny_llama(
        tmp_path / "model", attention_bias=True, mlp_bias=True, initializer_range=0.3
    )
    state = load_file(folder / "model.safetensors")
    biases = [name for name in state if name.endswith(".bias")]
    assert len(biases) == 2 * 7
    for name in biases:
        state[name].normal_()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert prove(folder, "F32", tmp_path, compared=2).agreement > 0.9


@pytest.mark.parametrize("name", spm_cases.NAMES)
def test_llama_cpp_gives_the_same_ids_from_the_file(name, tmp_path):
    cases = spm_cases.cases(name)
    tokenizer = tokenizers.load_tokenizer(cases.folder)
    shape = {"hidden": 64, "vocab_size": len(tokenizer), "num_hidden_layers": 1}
    folder = write_tiny_llama(tmp_path, **shape)
    tokenizers.save_tokenizer(tokenizer, folder)
    write_gguf(folder, tmp_path / "model.gguf", "Q8_0")
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", context=64, threads=1) as model:
        for text, ids in cases:
            assert model.tokenize(text, add_special=False) == ids, repr(text)
