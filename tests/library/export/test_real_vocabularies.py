"""The families with their real vocabularies: random weights, the ids of the original.

The vocabularies are not the project's: those of llama.cpp's own tests lie in a checkout of it (or
in the source package of llama-cpp-python, under vendor/llama.cpp), which LLAMA_CPP_DIR names, with
the ids that the original tokenizers give to 46 texts; Mistral's lies in the package mistral-common.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from running import succeeds
from sentencepiece import SentencePieceProcessor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from slimtune import prompts
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.proof.hard_texts import TEXTS
from slimtune.inference.gguf_tokenizer import put_first, tokens_of
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers
from slimtune.models.gguf_header import read_gguf
from slimtune.unpacking.gguf_tokenizers import write_tokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
# Vocabulary of llama.cpp's tests -> the models that have it.
FAMILIES = {
    "Qwen2.5": ("qwen2", Qwen2Config, {}),
    "Qwen3": ("qwen2", Qwen3Config, {"head_dim": 16}),
    "Llama-3.2": ("llama-bpe", LlamaConfig, {"rope_parameters": LLAMA3}),
    "Llama-2": ("llama-spm", LlamaConfig, {}),
}
_BETWEEN = "\n__ggml_vocab_test__\n"


def _vocabulary(name: str) -> Path | None:
    """A vocabulary of llama.cpp's tests with its texts and ids."""
    checkout = os.environ.get("LLAMA_CPP_DIR")
    file = Path(checkout or "", "models", f"ggml-vocab-{name}.gguf")
    return file if checkout and file.is_file() else None


def _mistral_v3() -> Path | None:
    """Its code is never run."""
    spec = find_spec("mistral_common")
    places = spec.submodule_search_locations if spec else None
    name = "data/mistral_instruct_tokenizer_240323.model.v3"
    file = Path(places[0], name) if places else Path(name)
    return file if file.is_file() else None


MISTRAL = _mistral_v3()
needs_vocabularies = pytest.mark.skipif(
    _vocabulary("qwen2") is None,
    reason="needs the vocabularies of llama.cpp's tests: LLAMA_CPP_DIR names no checkout",
)
needs_mistral = pytest.mark.skipif(
    MISTRAL is None, reason="needs the package mistral-common (without its dependencies)"
)


def cases_of(file: Path) -> list[tuple[str, list[int]]]:
    """(text, ids of the original tokenizer), as llama.cpp's own test has them."""
    texts = file.with_name(f"{file.name}.inp").read_text(encoding="utf-8").split(_BETWEEN)
    lines = file.with_name(f"{file.name}.out").read_text(encoding="utf-8").splitlines()
    ids = [[int(word) for word in line.split()] for line in lines]
    return list(zip(texts[: len(ids)], ids, strict=True))


def add_random_model(folder: Path, config_class: type[PretrainedConfig], **changes) -> None:
    tokenizer = tokenizers.load_tokenizer(folder)
    torch.manual_seed(0)
    config = config_class(
        **SHAPE | changes,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)


@needs_vocabularies
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_that_llama_cpps_own_tests_expect(family, tmp_path, monkeypatch) -> None:
    """Of the folder's tokenizer and of our GGUF; then the script's whole proof."""
    name, config_class, changes = FAMILIES[family]
    file, folder = _vocabulary(name), tmp_path / "model"
    header = read_gguf(file)
    tokens = tokens_of(header)
    with LlamaCpp(file, slots=0) as original:
        write_tokenizer(header, tokens, put_first(original, tokens), folder)
    (folder / "chat_template.jinja").write_text(prompts.template("chatml"), encoding="utf-8")
    add_random_model(folder, config_class, **changes)
    write_gguf(folder, tmp_path / "m.gguf", "F16")
    tokenizer, cases = tokenizers.load_tokenizer(folder), cases_of(file)
    assert len(cases) == 46
    with LlamaCpp(tmp_path / "m.gguf", context=64, threads=1) as model:
        first = [tokenizer.bos_token_id] if prompts.puts_bos(tokenizer) else []
        for text, ids in cases:
            assert tokenizer(text, add_special_tokens=False).input_ids == ids, text
            assert model.tokenize(text) == [*first, *ids], text
    monkeypatch.chdir(tmp_path)
    words = ["--model-path", folder, "--output-dir", "out", "--quantization", "F16"]
    ran = succeeds("convert_to_gguf", *words, "--create-modelfile")
    assert "proof" in ran.out


@needs_mistral
@pytest.mark.slow
def test_mistral_v3_splits_as_its_own_tokenizer_does(tmp_path, monkeypatch) -> None:
    """Seven-hundred control tokens stand before the pieces; its vocabulary has 32,768."""
    folder = tmp_path / "model"
    tokenizers.save_tokenizer(tokenizers.from_sentencepiece(MISTRAL), folder)
    (folder / "chat_template.jinja").write_text(prompts.template("llama2"), encoding="utf-8")
    add_random_model(folder, MistralConfig, sliding_window=None, head_dim=16)
    write_gguf(folder, tmp_path / "m.gguf", "F16")
    original = SentencePieceProcessor(model_file=str(MISTRAL))
    assert original.vocab_size() == 32768
    tokenizer = tokenizers.load_tokenizer(folder)
    plain = [text for text in TEXTS if "[INST]" not in text]  # whose words are tokens here
    with LlamaCpp(tmp_path / "m.gguf", context=64, threads=1) as model:
        for text in plain:
            ids = original.encode(text)
            assert tokenizer(text, add_special_tokens=False).input_ids == ids, text
            assert model.tokenize(text) == [original.bos_id(), *ids], text
        special = [original.piece_to_id(piece) for piece in ("[INST]", "[/INST]")]
        assert [id for id in model.tokenize("[INST] a[/INST]") if id in special] == special
    monkeypatch.chdir(tmp_path)
    words = ["--model-path", folder, "--output-dir", "out", "--quantization", "F16"]
    assert "proof" in succeeds("convert_to_gguf", *words).out
