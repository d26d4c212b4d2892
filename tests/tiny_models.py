"""A tiny world for training tests: random models of each family, samples of uneven length."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slimtune.prompts import IGNORED
from slimtune.training.attention import register
from slimtune.training.batches import Sample

torch.set_num_threads(1)
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 1e4,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama_tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    # As Qwen3-0.6B: heads * head size is twice the hidden size, norms of queries and keys, tied.
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
    # As Llama-3.2: tied, and positions scaled; rows of samples are longer than 8 positions.
    "llama3.2": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
}


def tiny_model(family: str = "llama", attention: str | None = None) -> PreTrainedModel:
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(1)
    config = config_class(**SHAPE, **extra, attn_implementation=attention or register())
    model = model_class(config)
    for name, values in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(values, mean=1.0, std=0.3)  # ones would say nothing
    return model


def tiny_samples(count: int, seed: int = 0, shared: int = 0) -> list[Sample]:
    """Samples of 6 to 19 tokens; two of three begin with the same `shared` tokens more, of which
    none is learned, and every sixth with other ones."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        length = int(torch.randint(6, 20, (1,), generator=generator))
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        prompt = int(torch.randint(1, length - 2, (1,), generator=generator))
        before = [] if index % 3 == 2 else [3 + index % 6 // 4 + 7 * n % 50 for n in range(shared)]
        labels = [IGNORED] * (len(before) + prompt) + ids[prompt:]
        samples.append(Sample(before + ids, labels, index))
    return samples
