"""The shipped sample models: small enough, cut to K-quant sizes, and loadable once unpacked."""

import json
from pathlib import Path

import pytest
import sentencepiece
from safetensors import safe_open

from slimtune.models import tokenizers
from slimtune.sample import unpack, world_text
from slimtune.sample.parts import SAMPLE_MODELS, WEIGHTS


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    assert unpack(folder) == [folder / name for name in SAMPLE_MODELS]
    return folder


def test_both_models_ship_in_at_most_12_mb():
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000


def test_unpacking_twice_gives_the_same_files(unpacked: Path):
    unpack(unpacked)
    for file in WEIGHTS.rglob("*.*"):
        assert (unpacked / file.relative_to(WEIGHTS)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_k_quants_apply_before_and_after_pruning(unpacked: Path, name: str):
    config = json.loads((unpacked / name / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    heads = config["num_attention_heads"] * config["head_dim"]
    sizes = (config["hidden_size"], config["intermediate_size"], heads)
    assert not any(size % 256 for size in sizes)
    assert config["intermediate_size"] > 256


def test_one_cut_of_the_ffn_takes_a_fifth_of_the_base(unpacked: Path):
    with safe_open(unpacked / "base" / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    total = sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes.values())
    ffn = sum(
        rows * columns
        for name, (rows, *rest) in shapes.items()
        if "mlp" in name
        for columns in rest
    )
    assert ffn / 3 / total >= 0.2


def test_the_tokenizer_reads_the_world_and_the_prompt_template_without_bytes(unpacked: Path):
    model_file = str(unpacked / "base" / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model_file)
    told = [*world_text(seed=9, lines=300), "[INST] <<SYS>> <</SYS>> [/INST]"]
    assert not any(processor.is_byte(i) for line in told for i in processor.encode(line))


def test_the_tokenizer_files_agree_with_sentencepiece(unpacked: Path):
    model_file = str(unpacked / "base" / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model_file)
    tokenizer = tokenizers.load_tokenizer(unpacked / "base")
    assert tokenizer.pad_token != tokenizer.eos_token
    for line in world_text(seed=9, lines=300):
        assert tokenizer(line, add_special_tokens=False).input_ids == processor.encode(line)
