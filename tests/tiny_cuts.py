"""Random models to cut, of every family, and the same cut made by hand on a loaded model."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from slimtune.inference.stack import batches_of

torch.set_num_threads(1)
IDS = torch.arange(3, 15).reshape(2, 6)
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8, "rope_theta": 1e4,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, {}),
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "biased": (LlamaConfig, {"mlp_bias": True, "attention_bias": True}),
    "mistral": (MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "qwen2": (Qwen2Config, {}),
    # As Qwen3-0.6B: heads * head size is twice the hidden size; biases are ours.
    "qwen3": (Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, biased": (Qwen3Config, {"head_dim": 16, "attention_bias": True}),
    "llama3.2": (LlamaConfig, {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
}


def build(folder: Path, family: str = "llama", dtype=torch.float32, **changes) -> PreTrainedModel:
    """A random model in several shards; beside it a tokenizer.model that must come along."""
    torch.manual_seed(0)
    config, more = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(config(**SIZES | more | changes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=parameter.dim() == 1, std=0.2)  # biases and norms, too
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "tokenizer.model").write_text("pieces")
    return model.eval()


def words(count: int = 24, length: int = 20, seed: int = 0) -> list:
    """Calibration batches of random ids, of uneven length."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 96, (length - n % 5,), generator=generator) for n in range(count)]
    return batches_of([row.tolist() for row in rows], tokens=100)


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def without(model: PreTrainedModel, neurons: list, groups: list) -> PreTrainedModel:
    """A copy in which the named units of each layer send nothing on: the cut, made by zeros."""
    zeroed, config = copy.deepcopy(model), model.config
    width = zeroed.model.layers[0].self_attn.o_proj.in_features // config.num_key_value_heads
    with torch.no_grad():
        for layer, gone, heads in zip(zeroed.model.layers, neurons, groups, strict=True):
            layer.mlp.down_proj.weight[:, gone] = 0
            for group in heads:
                layer.self_attn.o_proj.weight[:, group * width : (group + 1) * width] = 0
    return zeroed


def units_gone(model: PreTrainedModel, pruned: PreTrainedModel) -> tuple[list, list]:
    """Which neurons and KV groups of each layer are no longer there, found by their rows."""
    neurons, groups, dim = [], [], pruned.model.layers[0].self_attn.head_dim
    for old, new in zip(model.model.layers, pruned.model.layers, strict=True):
        neurons.append(_missing(old.mlp.up_proj.weight, new.mlp.up_proj.weight))
        keys = [layer.self_attn.k_proj.weight.unflatten(0, (-1, dim)) for layer in (old, new)]
        groups.append(_missing(*(key.flatten(1) for key in keys)))
    return neurons, groups


def _missing(old: torch.Tensor, new: torch.Tensor) -> list[int]:
    return [i for i, row in enumerate(old) if not (new == row).all(dim=1).any()]
