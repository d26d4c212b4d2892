"""One table of a Llama's anatomy: what follows from it is what transformers and llama.cpp say."""

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from slimtune.export.architecture import Architecture, read_architecture
from slimtune.export.tensors import gguf_name, map_tensors, row_order
from slimtune.models.family import (
    FAMILIES,
    PARTS,
    Family,
    ModelShape,
    axes_of,
    families_in_words,
    gguf_tensor_name,
)
from slimtune.models.weights import Checkpoint
from slimtune.pruning.anatomy import prunable_shape

torch.set_num_threads(1)
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "biased": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, head_dim=16, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
}
# A family that is not here yet, as its only entry: norms of queries and keys, no biases.
QWEN3 = Family(
    title="Qwen3",
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    gguf="qwen3",
    rotary="half",
    head_sizes_in_gguf=True,
    norms=("input_layernorm", "q_norm", "k_norm", "post_attention_layernorm"),
)


def require_the_model_s_own(config) -> ModelShape:
    """Names, sizes and count of all tensors are those of transformers' class."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.of(config.to_dict())
    stored = {name: tuple(values.shape) for name, values in model.named_parameters()}
    assert shape.tensors == stored
    assert shape.parameters == model.num_parameters()
    return shape


def require_llama_cpp_s_own_names(shape: ModelShape) -> None:
    """gguf-py's tensor map is the reference; every part that the family stores is in it."""
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[shape.family.gguf], shape.layers)
    for name in shape.tensors:
        expected = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_tensor_name(shape, name) == expected is not None, name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_the_one_of_transformers_and_of_llama_cpp(name: str) -> None:
    shape = require_the_model_s_own(CONFIGS[name])
    require_llama_cpp_s_own_names(shape)
    for tensor, size in shape.tensors.items():
        assert size == tuple(shape.sizes[axis] for axis in axes_of(tensor))


def test_every_entry_has_all_its_parts() -> None:
    for name, family in FAMILIES.items():
        assert family.model_type == name and family.gguf in gguf.MODEL_ARCH_NAMES.values()
        assert family.model_class.lower() == f"{name}forcausallm"
        assert {*family.biases, *family.norms} <= PARTS.keys()
        assert family.undivided is None or family.undivided in FAMILIES


def test_what_a_model_does_not_have_has_no_name() -> None:
    shape = ModelShape.of(CONFIGS["llama"].to_dict())
    for name in ("model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight"):
        assert gguf_tensor_name(shape, name) is None
    assert gguf_tensor_name(shape, "model.layers.0.mlp.up_proj.scale") is None
    assert axes_of("model.layers.0.self_attn.rotary_emb.inv_freq") is None


def test_texts_that_list_families_follow_the_table(monkeypatch, tmp_path) -> None:
    assert families_in_words() == "Llama, Mistral and Qwen2"
    monkeypatch.setitem(FAMILIES, "qwen3", QWEN3)
    assert families_in_words("or") == "Llama, Mistral, Qwen2 or Qwen3"


def test_a_family_that_differs_in_norms_and_biases_is_one_entry(tmp_path, monkeypatch) -> None:
    """Count, tensors, pruning axes, GGUF shapes and head order of Qwen3, from one entry."""
    config = Qwen3Config(**SIZES, head_dim=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    monkeypatch.setitem(FAMILIES, "qwen3", QWEN3)
    shape = require_the_model_s_own(config)
    require_llama_cpp_s_own_names(shape)
    checkpoint = Checkpoint(tmp_path)
    assert prunable_shape(checkpoint) == shape
    assert axes_of("model.layers.1.self_attn.k_norm.weight") == ("head",)
    architecture: Architecture = read_architecture(tmp_path, checkpoint.config)
    mapped = map_tensors(tmp_path, architecture, checkpoint.shapes)
    assert set(mapped.values()) == set(shape.tensors)
    assert mapped["blk.1.attn_k_norm.weight"] == "model.layers.1.self_attn.k_norm.weight"
    assert gguf_name(architecture, "model.norm.weight") == "output_norm.weight"
    assert row_order(architecture, "blk.0.attn_q.weight") is None
