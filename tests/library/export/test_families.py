"""Each family of models, as transformers knows it, says the same from its GGUF."""

import json
from pathlib import Path

import pytest
import torch
from originals import DATA, originals
from running import succeeds
from taught_llama import PAGE
from tiny_folders import TEXT
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from slimtune import prompts
from slimtune.export.gguf_writer import write_gguf
from slimtune.inference.decoding import Decoding
from slimtune.inference.generation import generate_batch
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.token_losses import batch_losses
from slimtune.models import tokenizers
from slimtune.models.weights import copy_companions

ALLOWED = {"F32": 1e-3, "F16": 1e-3, "Q8_0": 5e-3}  # nats a token
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module", params=["taught", *originals("stories260K", "stories260K")])
def trained(request, taught_llama) -> tuple[Path, str]:
    """A model that is sure of what it says, and a text that it has not quite expected."""
    if request.param == "stories260K":
        story = (DATA / "text" / "tinystories.txt").read_text(encoding="utf-8")
        return DATA / request.param, story[:800]
    halves = PAGE[len(PAGE) // 2 :], PAGE[: len(PAGE) // 2]
    return taught_llama, "".join(halves)


def compare(folder: Path, text: str, file: Path, kind: str) -> None:
    """100 greedy tokens, and the likelihood of a text, against transformers in float32."""
    write_gguf(folder, file, kind)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with LlamaCpp(file, context=512, threads=1) as gguf:
        asked, story = gguf.tokenize("Once upon a time"), gguf.tokenize(text)
        tokenizer = tokenizers.load_tokenizer(folder)
        assert story == tokenizer(text).input_ids and len(story) > 250
        answer = gguf.generate([asked], Decoding(100))[0].ids
        ((_, losses),) = gguf.losses([(story[:1], story[1:])])
    (wanted,) = generate_batch(model, tokenizer, [asked], Decoding(100), ends=[2])
    assert answer == wanted.ids and len(answer) == 100
    (expected,) = batch_losses(model, [{"input_ids": story, "labels": [-100, *story[1:]]}])
    assert len(losses.nats) == len(expected.nats) == len(story) - 1
    per_token = [found.total.nats / found.total.tokens for found in (losses, expected)]
    assert per_token[0] == pytest.approx(per_token[1], abs=ALLOWED[kind])


@pytest.mark.parametrize("kind", ALLOWED)
def test_a_trained_llama(trained, tmp_path, kind) -> None:
    compare(*trained, tmp_path / "model.gguf", kind)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_trained_llama_without_some_of_its_heads_and_neurons(trained, tmp_path, kind) -> None:
    """6 heads of 8 at hidden 64: no Llama any more, so it is saved as a Mistral."""
    whole, text = trained
    source = AutoModelForCausalLM.from_pretrained(whole)
    config = source.config.to_dict() | {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 128,
        "sliding_window": None,
    }
    del config["model_type"], config["architectures"]
    pruned = AutoModelForCausalLM.from_config(MistralConfig(**config))
    wanted = pruned.state_dict()
    kept = {
        name: tensor[tuple(slice(length) for length in wanted[name].shape)]
        for name, tensor in source.state_dict().items()
    }
    pruned.load_state_dict(kept)
    pruned.save_pretrained(tmp_path / "pruned")
    copy_companions(whole, tmp_path / "pruned", without=["config.json"])
    compare(tmp_path / "pruned", text, tmp_path / "model.gguf", kind)


def byte_level(folder: Path, digits: str, bos: str | None, eos: str) -> int:
    """A BPE of bytes, split as Llama-3 and Qwen2 split; returns its size."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT.format(digits=digits)), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    backend.decoder = decoders.ByteLevel()
    special = [name for name in (bos, eos, "<|im_start|>", "<|pad|>") if name]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token="<|pad|>"
    )
    tokenizer.chat_template = prompts.template("chatml")
    tokenizers.save_tokenizer(tokenizer, folder)
    return len(tokenizer)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TIED = {"tie_word_embeddings": True}
# Class, settings, how many digits are a piece, BOS, EOS.
_QWEN = (r"\p{{N}}", None, "<|im_end|>")
_LLAMA3 = (r"\p{{N}}{{1,3}}", "<|begin_of_text|>", "<|eot_id|>")
FAMILIES = {
    "qwen2": (Qwen2Config, {}, *_QWEN),
    "qwen2, tied": (Qwen2Config, TIED, *_QWEN),
    # As 0.6B to 4B: heads * head size is not the hidden size.
    "qwen3": (Qwen3Config, TIED | {"head_dim": 32}, *_QWEN),
    "llama3": (LlamaConfig, {"rope_parameters": LLAMA3}, *_LLAMA3),
    "llama3.2": (LlamaConfig, TIED | {"rope_parameters": LLAMA3 | {"factor": 32.0}}, *_LLAMA3),
}


def random_model(folder: Path, family: str, **changes) -> None:
    """Saved with its tokenizer; biases and the norms of queries and keys are drawn, too.

    All numbers are those of float16, so that F16 is exact but for llama.cpp's cache.
    """
    torch.manual_seed(0)
    config_class, extra, digits, bos, eos = FAMILIES[family]
    size = byte_level(folder, digits.format(), bos, eos)
    ids = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    end = next(token["id"] for token in ids if token["content"] == eos)
    settings = SHAPE | extra | changes
    config: PretrainedConfig = config_class(
        **settings, vocab_size=size, eos_token_id=end, bos_token_id=None
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, values in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(values)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(values, mean=1.0, std=0.3)
    model.half().float().save_pretrained(folder)


def require_proven(folder: Path, kind: str) -> None:
    """The script's own proof, on rows with digits, code, Chinese and an emoji."""
    Path("config.yaml").write_text("gguf: {model_name: m, output_dir: out}\n")
    words = ["--config", "config.yaml", "--model-path", folder, "--quantization", kind]
    succeeds("convert_to_gguf", *words, "--create-modelfile")
    proof = json.loads(Path(f"out/m-{kind}_run.json").read_text())["metrics"]["proof"]
    assert proof["prompts"] == proof["rows"] == 5
    assert proof["agreement"] > 0.9
    assert proof["nll_gguf"] == pytest.approx(proof["nll_reference"], abs=5e-3)


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_of_another_family(family, kind, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    random_model(tmp_path / "model", family)
    require_proven(tmp_path / "model", kind)
    *_, bos, eos = FAMILIES[family]
    modelfile = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert f'$eos := "{eos}"' in modelfile and f'$bos := "{bos or ""}"' in modelfile


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3.2"])
def test_a_model_cut_on_every_axis(family, tmp_path, monkeypatch) -> None:
    """Layers, hidden channels, neurons and KV groups: llama.cpp reads what is left."""
    monkeypatch.chdir(tmp_path)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}
    random_model(tmp_path / "model", family, **shape)
    words = ["--model-path", tmp_path / "model", "--output-dir", tmp_path / "pruned"]
    words += ["--layer-ratio", 0.34, "--hidden-ratio", 0.5, "--ffn-ratio", 0.34]
    words += ["--kv-group-ratio", 0.25, "--calibration", "self"]
    succeeds("model_pruning", *words, "--calibration-rows", 10, "--calibration-length", 16)
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    left = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_key_value_heads")
    assert [config[name] for name in left] == [2, 32, 64, 3]
    require_proven(tmp_path / "pruned", "F32")
