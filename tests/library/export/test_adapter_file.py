"""An adapter as a GGUF of its own: the change that peft computes, in llama.cpp's layout."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_folders import VOCABULARY
from tiny_models import FAMILIES, SHAPE
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from slimtune.errors import InputError
from slimtune.export.adapter_file import AdapterFile, require_alone, write_adapter
from slimtune.export.architecture import read_architecture
from slimtune.export.ggml import find_encoder
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.tensors import row_order
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models.adapters import ADAPTER_WEIGHTS, Adapter
from slimtune.models.json_files import read_model_json
from slimtune.models.weights import TOKENIZER_FILES, Checkpoint, copy_companions

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCALES = {
    "plain": {"r": 8, "lora_alpha": 16},
    "rank-stabilised": {"r": 8, "lora_alpha": 16, "use_rslora": True},
    "ranks by pattern": {"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4, "v_proj": 2}},
    "alphas by pattern": {"r": 8, "lora_alpha": 16, "alpha_pattern": {"k_proj": 5}},
    "both, rank-stabilised": {
        "r": 8,
        "lora_alpha": 16,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {"o_proj": 7},
    },
}
STEP = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127}


def trained(base: Path, folder: Path, **options: object) -> Path:
    """An adapter by peft with every matrix away from zero."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(4)
    options = {"target_modules": EVERY, "init_lora_weights": False} | options
    get_peft_model(model, LoraConfig(**options)).save_pretrained(folder)
    return folder


def plan_of(base: Path, adapter: Path, kind: str) -> AdapterFile:
    architecture = read_architecture(base, read_model_json(base / "config.json"))
    return AdapterFile(Adapter(adapter), architecture, kind, find_encoder())


def written(base: Path, adapter: Path, file: Path, kind: str = "F32") -> Path:
    write_adapter(plan_of(base, adapter, kind), file, "tiny")
    return file


def change_in(file: Path, name: str) -> np.ndarray:
    """alpha / rank * B A as llama.cpp will read it (src/llama-adapter.h: get_scale)."""
    reader = gguf.GGUFReader(file)
    alpha = reader.get_field("adapter.lora.alpha").contents()
    a, b = (
        gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for end in ("lora_a", "lora_b")
        for tensor in reader.tensors
        if tensor.name == f"{name}.{end}"
    )
    return b @ a * (alpha / a.shape[0])


@pytest.mark.parametrize("scales", SCALES)
def test_the_change_is_pefts_whatever_scales_it(llama, tmp_path, scales):
    adapter = trained(llama, tmp_path / "adapter", **SCALES[scales])
    file = written(llama, adapter, tmp_path / "lora.gguf")
    plan = plan_of(llama, adapter, "F32")
    names = {one.weight: one.name.removesuffix(".lora_a") for one in plan.factors if not one.is_b}
    assert len(names) == 14
    for weight, name in names.items():
        expected = plan.adapter.pairs[weight].delta(0, plan.adapter.pairs[weight].b.shape[0])
        found, order = change_in(file, name), row_order(plan.architecture, name)
        if order is not None:
            back = np.argsort(order)
            found = found.reshape(-1, len(order), found.shape[1])[:, back].reshape(found.shape)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", STEP)
def test_each_type_keeps_each_matrix_within_its_step(llama, tmp_path, kind):
    adapter = trained(llama, tmp_path / "adapter", r=32, lora_alpha=16)
    file = written(llama, adapter, tmp_path / "lora.gguf", kind)
    plan = plan_of(llama, adapter, kind)
    for tensor, factor in zip(gguf.GGUFReader(file).tensors, plan.factors, strict=True):
        assert (tensor.name, tensor.tensor_type.name) == (factor.name, kind)
        exact = plan.read(factor)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.abs(found - exact).max() <= STEP[kind] * np.abs(exact).max()


def test_rows_that_q8_0_cannot_hold_fall_back_to_f16_and_are_named(llama, tmp_path):
    plan = plan_of(llama, trained(llama, tmp_path / "adapter", r=8), "Q8_0")
    assert plan.types == {"Q8_0": 14, "F16": 14}
    assert "blk.0.attn_q.weight.lora_b (F16)" in plan.fallbacks


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_says_of_base_and_adapter_what_peft_says(llama, tmp_path, family):
    base = _base(family, llama, tmp_path / "base")
    tied = FAMILIES[family][2].get("tie_word_embeddings")
    targets = EVERY if tied else [*EVERY, "embed_tokens", "lm_head"]
    adapter = trained(base, tmp_path / "adapter", r=4, lora_alpha=6, target_modules=targets)
    require_alone(Adapter(adapter), Checkpoint(base))
    write_gguf(base, tmp_path / "base.gguf", "F32")
    lora = written(base, adapter, tmp_path / "lora.gguf")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = list(range(5, 45))
    expected = _losses(PeftModel.from_pretrained(model, adapter), ids)
    with LlamaCpp(tmp_path / "base.gguf", adapter=lora, context=64, threads=1) as both:
        ((_, found),) = both.losses([(ids[:1], ids[1:])])
    with LlamaCpp(tmp_path / "base.gguf", context=64, threads=1) as alone:
        ((_, before),) = alone.losses([(ids[:1], ids[1:])])
    assert np.abs(np.subtract(found.nats, expected)).max() < 0.02
    assert np.abs(np.subtract(before.nats, expected)).max() > 0.2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3, 5]}, "retrained tokens"),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused_by_name(llama, tmp_path, options, named):
    adapter = trained(llama, tmp_path / "adapter", **options)
    _change_whole_weights(adapter)
    with pytest.raises(InputError, match=named):
        require_alone(Adapter(adapter), Checkpoint(llama))


def test_an_embedding_that_the_base_ties_is_refused(narrow, tmp_path):
    """llama.cpp finds the pair under the output layer's name too and aborts on its shape."""
    adapter = trained(narrow, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(InputError, match="ties"):
        require_alone(Adapter(adapter), Checkpoint(narrow))


def test_values_beyond_the_type_name_bf16(llama, tmp_path):
    adapter = trained(llama, tmp_path / "adapter")
    _scale(adapter, 1e7)
    with pytest.raises(InputError, match="BF16"):
        written(llama, adapter, tmp_path / "lora.gguf", "F16")
    written(llama, adapter, tmp_path / "lora.gguf", "BF16")


def _base(family: str, with_tokenizer: Path, folder: Path) -> Path:
    """A random model of a family, with another folder's tokenizer."""
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(1)
    shape = SHAPE | extra | {"vocab_size": VOCABULARY, "initializer_range": 0.15}
    model_class(config_class(**shape)).save_pretrained(folder)
    copy_companions(with_tokenizer, folder, only=TOKENIZER_FILES)
    return folder


def _change_whole_weights(adapter: Path) -> None:
    """As if they were trained: peft saves a copy of the base's where nothing changed."""
    file = adapter / ADAPTER_WEIGHTS
    tensors = {
        name: tensor if ".lora_" in name else tensor + 1 for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})


def _scale(adapter: Path, factor: float) -> None:
    file = adapter / ADAPTER_WEIGHTS
    tensors = {name: tensor * factor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def _losses(model: torch.nn.Module, ids: list[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].float()
    return F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").tolist()
