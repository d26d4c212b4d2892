"""What is in the file: values, bytes, metadata; against numpy's encoder and the weights."""

import json
import math
import shutil

import gguf
import numpy as np
import pytest
import torch
from expected_rows import expected_rows
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tiny_folders import VOCABULARY, write_tiny_llama

from slimtune import prompts
from slimtune.errors import InputError, ResourceError
from slimtune.export import gguf_writer, preflight
from slimtune.export.ggml import Encoder
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.plan import Encoding
from slimtune.export.quant_types import QUANTIZATIONS
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models.weights import CheckpointWriter, copy_companions

ALL = list(QUANTIZATIONS)
NUMPY = Encoding(Encoder(None))  # a machine without ggml's library
# Root mean square error relative to the tensor's own, generous: wrong order or scale gives over 1.
ERROR = {"F32": 0, "F16": 1e-3, "BF16": 1e-3, "Q8_0": 0.01, "Q5_K_M": 0.05, "Q4_K_M": 0.1}


def tensors(file) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("kind", ALL)
def test_values_are_the_models(llama, tmp_path, kind):
    report = write_gguf(llama, tmp_path / "out.gguf", kind)
    for name, tensor in tensors(tmp_path / "out.gguf").items():
        wanted = expected_rows(llama, name)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
        assert error <= ERROR.get(kind, 0.15), name
    end = max(int(t.data_offset + t.n_bytes) for t in tensors(tmp_path / "out.gguf").values())
    assert report.bytes == (tmp_path / "out.gguf").stat().st_size == -(-end // 32) * 32
    assert report.parameters == sum(
        t.numel() for t in load_file(llama / "model.safetensors").values()
    )
    assert report.fallbacks == []


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_bytes_equal_numpys_encoder(llama, tmp_path, kind):
    write_gguf(llama, tmp_path / "out.gguf", kind)
    compared = 0
    for name, tensor in tensors(tmp_path / "out.gguf").items():
        if tensor.tensor_type.name != kind:
            continue
        wanted = gguf.quants.quantize(expected_rows(llama, name), tensor.tensor_type)
        assert tensor.data.tobytes() == wanted.tobytes(), name
        compared += 1
    assert compared >= 15


def test_the_file_does_not_depend_on_threads_chunks_shards_or_encoder(llama, tmp_path, monkeypatch):
    write_gguf(llama, tmp_path / "whole.gguf", "Q8_0", threads=1, name="x")
    whole = (tmp_path / "whole.gguf").read_bytes()
    state = load_file(llama / "model.safetensors")
    spec = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    with CheckpointWriter(tmp_path / "sharded", spec, shard_bytes=500_000) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)
    copy_companions(llama, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    monkeypatch.setattr(gguf_writer, "_CHUNK_VALUES", 7 * 256)
    parts = tmp_path / "parts.gguf"
    write_gguf(tmp_path / "sharded", parts, "Q8_0", encoding=NUMPY, threads=3, name="x")
    assert (tmp_path / "parts.gguf").read_bytes() == whole


def test_metadata(llama, tmp_path):
    write_gguf(llama, tmp_path / "out.gguf", "Q4_K_M", name="my model")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    found = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.name": "my model",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M,
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": prompts.template("llama2"),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["tokenizer.ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert len(found["tokenizer.ggml.tokens"]) == VOCABULARY
    assert not found.get("tokenizer.ggml.add_eos_token", False)


def test_tensor_order_is_llama_cpps(llama, tmp_path):
    write_gguf(llama, tmp_path / "out.gguf", "F16")
    names = list(tensors(tmp_path / "out.gguf"))
    assert names[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert names[3:6] == [
        "blk.0.attn_k.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_output.weight",
    ]
    assert names[-1] == "blk.1.ffn_up.weight"


def test_narrow_rows_fall_back_and_the_plan_knows(narrow, tmp_path):
    plan = preflight.preflight(narrow, "Q4_K_M")
    report = write_gguf(narrow, tmp_path / "out.gguf", "Q4_K_M")
    types = {name: t.tensor_type.name for name, t in tensors(tmp_path / "out.gguf").items()}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["token_embd.weight"] == "Q8_0"
    assert report.types == {"F32": 5, "Q5_0": 11, "Q8_0": 2, "F16": 2}
    assert "blk.0.ffn_down.weight (F16)" in report.fallbacks == plan.fallbacks
    assert math.isclose(plan.bytes, report.bytes, abs_tol=8192)


def test_without_the_library_k_quants_are_refused_and_q8_0_is_not(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match="Q8_0") as caught:
        write_gguf(llama, tmp_path / "out.gguf", "Q4_K_M", encoding=NUMPY)
    for way in ("xllamacpp", "gguf.ggml_library", "llama-quantize"):
        assert way in str(caught.value)
    report = write_gguf(llama, tmp_path / "out.gguf", "Q4_0", encoding=NUMPY)
    assert report.fallbacks == ["output.weight (Q8_0)"]


def spoil(source, folder, change) -> None:
    """A copy of a model folder with its tensors changed by `change(state)`."""
    copy_companions(source, folder)
    state = load_file(source / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_no_type_can_hold_are_named(narrow, tmp_path, value):
    broken = "model.layers.1.mlp.up_proj.weight"
    spoil(narrow, tmp_path, lambda state: state[broken].__setitem__((3, 5), value))
    for kind in ("F16", "BF16"):
        with pytest.raises(InputError, match=broken) as error:
            write_gguf(tmp_path, tmp_path / "out.gguf", kind)
        assert "training diverged" in error.value.why


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_beyond_float16_the_cure_is_bfloat16(narrow, tmp_path, kind):
    large = "model.layers.1.mlp.up_proj.weight"
    spoil(narrow, tmp_path, lambda state: state[large].__setitem__((3, 5), -1e6))
    with pytest.raises(InputError, match=large) as error:
        write_gguf(tmp_path, tmp_path / "out.gguf", kind)
    assert "65504" in error.value.why and "--quantization BF16" in error.value.cure
    write_gguf(tmp_path, tmp_path / "out.gguf", "BF16")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    found = tensors["blk.1.ffn_up.weight"]
    assert gguf.quants.dequantize(found.data, found.tensor_type)[3, 5] == pytest.approx(
        -1e6, rel=4e-3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), "1 tensors missing"),
        (lambda s: s.update(lora=torch.zeros(1)), "holds lora"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), "output_norm.weight has the"),
        (
            lambda s: s.update(
                {"model.layers.0.mlp.up_proj.weight.absmax": torch.zeros(3, dtype=torch.uint8)}
            ),
            "already quantised",
        ),
        (
            lambda s: s.update(
                {"model.norm.weight": s["model.norm.weight"].to(torch.float8_e4m3fn)}
            ),
            "quantised",
        ),
    ],
)
def test_preflight_finds_what_headers_tell(narrow, tmp_path, change, words):
    spoil(narrow, tmp_path, change)
    with pytest.raises(InputError, match=words):
        preflight.preflight(tmp_path, "F16")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "convert_hf_to_gguf.py"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 5e5}}, "longrope"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {}}, "already quantised"),
        ({"num_hidden_layers": 3}, "3 layers in config.json, 2 in"),
        ({"vocab_size": VOCABULARY - 1}, "token_embd.weight has the shape"),
    ],
)
def test_preflight_reads_the_config(narrow, tmp_path, changes, words):
    spoil(narrow, tmp_path, lambda state: None)
    edit_config(tmp_path, **changes)
    with pytest.raises(InputError, match=words):
        preflight.preflight(tmp_path, "F16")


def test_tokenizer_and_embedding_must_agree(narrow, tmp_path):
    spoil(narrow, tmp_path, lambda state: None)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": VOCABULARY}))
    with pytest.raises(InputError, match=f"{VOCABULARY + 1} tokens, the embedding {VOCABULARY}"):
        preflight.preflight(tmp_path, "F16")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(InputError, match="no tokenizer.model"):
        preflight.preflight(tmp_path, "F16")


def test_spare_rows_become_unused_tokens_and_added_ones_are_kept(tmp_path):
    write_tiny_llama(tmp_path, hidden=64, vocab_size=VOCABULARY + 8)
    config = json.loads((tmp_path / "tokenizer.json").read_text())
    token = config["added_tokens"][0] | {"id": VOCABULARY, "content": "<|im_end|>", "special": True}
    config["added_tokens"].append(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    write_gguf(tmp_path, tmp_path / "out.gguf", "F16")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    assert tokens[VOCABULARY:] == ["<|im_end|>", *(f"[PAD{VOCABULARY + i}]" for i in range(1, 8))]
    assert types[VOCABULARY:] == [gguf.TokenType.CONTROL, *[gguf.TokenType.UNUSED] * 7]


def test_user_defined_pieces_stay_whole(tmp_path):
    """As Mistral v3's [REFERENCE_DOC_0]: llama.cpp's converter calls them ordinary."""
    write_tiny_llama(tmp_path, hidden=64)
    proto = ModelProto.FromString((tmp_path / "tokenizer.model").read_bytes())
    place = VOCABULARY - 1
    proto.pieces[place].piece, proto.pieces[place].type = "[DOC 1]".replace(" ", "\u2581"), 4
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    original = SentencePieceProcessor(model_proto=proto.SerializeToString())
    write_gguf(tmp_path, tmp_path / "out.gguf", "F16")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["tokenizer.ggml.token_type"].contents()[place] == gguf.TokenType.USER_DEFINED
    assert fields["tokenizer.ggml.tokens"].contents()[place] == "[DOC 1]"
    with LlamaCpp(tmp_path / "out.gguf", context=64, threads=1) as model:
        found = model.tokenize("The cat[DOC 1]")
        assert found == [original.bos_id(), *original.encode("The cat[DOC 1]")]
        assert place in found


def test_an_adapter_is_recognised(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(InputError, match="LoRA adapter"):
        preflight.preflight(tmp_path, "F16")


def test_a_sliding_window_limits_the_context(tmp_path):
    write_tiny_llama(tmp_path, hidden=64, mistral=True, sliding_window=100)
    assert preflight.preflight(tmp_path, "F16").architecture.context == 100


def test_a_full_disk_is_told_before_the_work(narrow, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="needed"):
        write_gguf(narrow, tmp_path / "out.gguf", "F16")
    assert not (tmp_path / "out.gguf").exists()
