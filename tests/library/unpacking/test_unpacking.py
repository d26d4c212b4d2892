"""A GGUF becomes the folder that it was made from: the same weights, ids and losses."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_bpe import RULES, write_bpe_llama
from tiny_folders import write_tiny_llama
from tiny_ggufs import changed
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from slimtune.config import Config, GenerationSection, ModelSection, Options
from slimtune.errors import InputError, ResourceError
from slimtune.export.gguf_writer import write_file, write_gguf
from slimtune.export.preflight import preflight
from slimtune.export.pretokenizers import known_names, pre_tokenizer_name, pre_tokenizer_of
from slimtune.export.tensors import row_order
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.token_losses import batch_losses
from slimtune.models import tokenizers
from slimtune.models.served_decoding import own_decoding
from slimtune.unpacking import gguf_tokenizers, gguf_weights
from slimtune.unpacking.unpack import plan_unpacking, read_gguf, unpacked

TEXT = "The cat sat on 12 mats.\n\n1. 今天天气很好\n 345 ½ dogs"


def settings(folder: Path, **options: bool) -> Config:
    config = Config(model=ModelSection(unpacked_dir=folder / "unpacked"))
    config._options = Options(**options)
    return config


def written(folder: Path, kind: str = "F32") -> Path:
    file = folder.with_suffix(".gguf")
    write_gguf(folder, file, kind)
    return file


def require_same_model(folder: Path, found: Path) -> None:
    """The same tensors to the last bit, and the same loss of a text under transformers."""
    ours, theirs = (load_file(one / "model.safetensors") for one in (found, folder))
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    theirs = {k: v for k, v in theirs.items() if not (tied and k == "lm_head.weight")}
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert torch.equal(ours[name], values.float()), name
    ids = tokenizers.load_tokenizer(folder)(TEXT).input_ids
    assert tokenizers.load_tokenizer(found)(TEXT).input_ids == ids
    losses = []
    for one in (folder, found):
        model = AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32)
        (loss,) = batch_losses(model, [{"input_ids": ids, "labels": ids}])
        losses.append(loss.nats)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def llama3(factor: float) -> dict:
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
MODELS = {
    "byte-level": lambda f: write_bpe_llama(f),
    "tied": lambda f: write_bpe_llama(f, tie_word_embeddings=True),
    "biases": lambda f: write_bpe_llama(f, attention_bias=True, mlp_bias=True),
    "bos": lambda f: write_bpe_llama(f, "llama-bpe", bos="<|begin|>"),
    "Llama-3.1": lambda f: write_bpe_llama(
        f, "llama-bpe", bos="<|begin|>", rope_parameters=llama3(8.0)
    ),
    "Llama-3.2": lambda f: write_bpe_llama(
        f, "llama-bpe", bos="<|begin|>", rope_parameters=llama3(32.0)
    ),
    "linear": lambda f: write_bpe_llama(
        f, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "yarn": lambda f: write_bpe_llama(
        f, rope_parameters=YARN | {"original_max_position_embeddings": 64}
    ),
    "narrow heads": lambda f: write_bpe_llama(f, head_dim=8),
    "Qwen2": lambda f: write_bpe_llama(f, "qwen2", family="qwen2"),
    "Qwen2, cut": lambda f: write_bpe_llama(f, "qwen2", family="qwen2", head_dim=8),
    "Qwen3": lambda f: write_bpe_llama(f, "qwen2", family="qwen3", head_dim=32),
    "Qwen3, tied": lambda f: write_bpe_llama(
        f, "qwen2", family="qwen3", head_dim=32, tie_word_embeddings=True
    ),
    "SentencePiece": lambda f: write_tiny_llama(f, hidden=64),
    "Mistral, cut": lambda f: write_tiny_llama(
        f, hidden=64, mistral=True, num_attention_heads=6, head_dim=8, sliding_window=None
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_folder_comes_back(model, tmp_path) -> None:
    folder = MODELS[model](tmp_path / "model")
    file = written(folder)
    found = unpacked(file, "m", settings(tmp_path))
    require_same_model(folder, found)
    before, after = (json.loads((one / "config.json").read_text()) for one in (folder, found))
    for key in ("model_type", "rope_parameters", "max_position_embeddings", "rms_norm_eps"):
        assert after[key] == before[key], key
    templates = [(one / "chat_template.jinja").read_text() for one in (folder, found)]
    assert templates[0] == templates[1]


def test_what_a_file_says_of_sampling_stays_with_its_folder(tmp_path) -> None:
    """So that `generation: base` finds it; the settings' own where it says nothing."""
    folder = write_tiny_llama(tmp_path / "model", hidden=64)
    drawn = GenerationSection(temperature=0.7, top_k=20, repeat_penalty=1.05)
    write_file({tmp_path / "d.gguf": replace(preflight(folder, "F32"), generation=drawn)})
    found = unpacked(tmp_path / "d.gguf", "d", settings(tmp_path))
    assert own_decoding(found).words == drawn.words
    ids = json.loads((found / "generation_config.json").read_text("utf-8"))
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_that_splits_text_comes_from_the_file(rule, tmp_path) -> None:
    """Not from what transformers makes of it: its converter drops the Digits of smollm."""
    folder = write_bpe_llama(tmp_path / "model", rule)
    file = changed(written(folder), tmp_path / "m.gguf", tokenizer__ggml__pre=rule)
    found = unpacked(file, "m", settings(tmp_path))
    texts = [TEXT, "1\n\n22\n\n333  4444", "a 12b  3"]
    own = tokenizers.load_tokenizer(folder)(texts, add_special_tokens=False).input_ids
    tokenizer = tokenizers.load_tokenizer(found)
    assert tokenizer(texts, add_special_tokens=False).input_ids == own
    with LlamaCpp(file, slots=0) as model:  # which puts its own choice before a text of Llama-3's
        assert [model.tokenize(text) for text in texts] == tokenizer(texts).input_ids


@pytest.mark.parametrize("name", known_names())
def test_every_known_rule_is_one_that_a_tokenizer_takes(name) -> None:
    """And reads again as the same rule: what is unpacked can be exported."""
    steps, whole_words = pre_tokenizer_of(name)
    chain = {"type": "Sequence", "pretokenizers": steps}
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "ignore_merges": whole_words}
    content = {"pre_tokenizer": chain, "model": model}
    assert Tokenizer.from_str(json.dumps(content)).encode("a").ids == [0]
    found = pre_tokenizer_name(Path("tokenizer.json"), content)
    assert pre_tokenizer_of(found) == (steps, whole_words)


def test_a_vocabulary_that_llama_cpp_splits_otherwise_is_refused(tmp_path, monkeypatch) -> None:
    file = written(write_bpe_llama(tmp_path / "model", "qwen2"))
    gpt2 = gguf_tokenizers.pre_tokenizer_of("gpt-2")
    monkeypatch.setattr(gguf_tokenizers, "pre_tokenizer_of", lambda _: gpt2)
    with pytest.raises(InputError, match="its vocabulary cannot be unpacked") as error:
        unpacked(file, "m", settings(tmp_path))
    assert "llama.cpp makes other ids" in error.value.why
    assert not (tmp_path / "unpacked" / "m").exists()


def test_without_the_order_of_rows_it_would_be_another_model(tmp_path, monkeypatch) -> None:
    """That the comparison of tensors above sees q and k."""
    folder = write_bpe_llama(tmp_path / "model")
    architecture = plan_unpacking(read_gguf(written(folder))).architecture
    assert row_order(architecture, "blk.0.attn_q.weight")[1] == 8
    monkeypatch.setattr(gguf_weights, "row_order", lambda *_: None)
    found = unpacked(tmp_path / "model.gguf", "m", settings(tmp_path))
    with pytest.raises(AssertionError, match="[qk]_proj"):
        require_same_model(folder, found)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_K_M", "F16", "BF16"])
def test_quantised_values_are_the_files(kind, tmp_path) -> None:
    folder = write_tiny_llama(tmp_path / "model")  # hidden 256: K-quants
    file = written(folder, kind)
    found = load_file(unpacked(file, "m", settings(tmp_path)) / "model.safetensors")
    dtype = torch.bfloat16 if kind == "BF16" else torch.float16
    assert {values.dtype for values in found.values()} == {dtype}
    (tensor,) = [one for one in gguf.GGUFReader(file).tensors if one.name == "blk.1.ffn_up.weight"]
    wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    values = found["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(values, torch.from_numpy(np.array(wanted)).to(dtype))


def test_it_says_what_quantising_cost(tmp_path, capsys) -> None:
    file = written(write_tiny_llama(tmp_path / "model", hidden=64), "Q8_0")
    found = unpacked(file, "m", settings(tmp_path))
    said = capsys.readouterr().err
    assert "bits a weight" in said and "Q8_0" in said and "not the original model" in said
    run = json.loads((found / "run.json").read_text())
    assert run["stage"] == "unpack" and 8.5 <= run["metrics"]["bits_per_weight"] < 9
    assert run["inputs"][0]["path"] == str(file)


def test_it_is_unpacked_once_and_again_for_another_file(tmp_path) -> None:
    file = written(write_bpe_llama(tmp_path / "model"))
    first = unpacked(file, "m", settings(tmp_path))
    made = (first / "run.json").stat().st_mtime_ns
    assert unpacked(file, "m", settings(tmp_path)) == first
    assert (first / "run.json").stat().st_mtime_ns == made
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # one bit of the last tensor
    file.write_bytes(data)
    second = unpacked(file, "m", settings(tmp_path))
    assert second != first and second.parent == first.parent and first.is_dir()
    (first / "config.json").write_text("{}")
    (second / "config.json").write_text("{}")
    assert unpacked(file, "m", settings(tmp_path, overwrite=True)) == second
    assert json.loads((second / "config.json").read_text())["model_type"] == "llama"
    assert (first / "config.json").read_text() == "{}"


def test_somebodys_own_folder_of_that_name_is_left_alone(tmp_path) -> None:
    file = written(write_bpe_llama(tmp_path / "model"))
    (tmp_path / "unpacked/m").mkdir(parents=True)
    (tmp_path / "unpacked/m/mine.txt").write_text("mine")
    assert unpacked(file, "m", settings(tmp_path)).name.startswith("m-")
    assert [one.name for one in (tmp_path / "unpacked/m").iterdir()] == ["mine.txt"]


def test_a_dry_run_writes_nothing(tmp_path, capsys) -> None:
    file = written(write_bpe_llama(tmp_path / "model"))
    assert unpacked(file, "m", settings(tmp_path, dry_run=True)) is None
    assert "would write" in capsys.readouterr().out
    assert not (tmp_path / "unpacked").exists()


def test_tensors_are_read_some_rows_at_a_time(tmp_path, monkeypatch) -> None:
    """Heads stay whole, and what comes out does not depend on how much is read at once."""
    folder = write_bpe_llama(tmp_path / "model")
    file = written(folder)
    monkeypatch.setattr(gguf_weights, "_CHUNK_BYTES", 4 * 64 * 20)  # 20 rows of 64: a head is 16
    plan = plan_unpacking(read_gguf(file))
    rows = gguf_weights._ordered(plan.header, plan.architecture, "blk.0.attn_q.weight")
    assert {len(some) for _, some in rows} == {16}
    require_same_model(folder, unpacked(file, "m", settings(tmp_path)))


def test_a_process_that_is_not_the_first_waits_for_the_first(tmp_path, monkeypatch) -> None:
    file = written(write_bpe_llama(tmp_path / "model"))
    first = unpacked(file, "m", settings(tmp_path))
    monkeypatch.setenv("RANK", "1")
    assert unpacked(file, "m", settings(tmp_path)) == first
    monkeypatch.setattr("slimtune.unpacking.unpack._PATIENCE", 0.0)
    file.write_bytes(file.read_bytes()[:-4] + b"abc?")
    with pytest.raises(ResourceError, match="was not unpacked"):
        unpacked(file, "m", settings(tmp_path))
