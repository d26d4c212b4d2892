"""One table of a Llama's anatomy: what follows from it is what transformers and llama.cpp say."""

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from slimtune.errors import InputError
from slimtune.export.architecture import Architecture, read_architecture
from slimtune.export.tensors import gguf_name, map_tensors, row_order
from slimtune.models.family import FAMILIES, PARTS, axes_of, families_in_words
from slimtune.models.model_shape import ModelShape, gguf_tensor_name
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
    "qwen3": Qwen3Config(**SIZES, head_dim=16),  # heads * head size is not the hidden size
    "qwen3, tied": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
}
CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config,
           "qwen3": Qwen3Config}  # fmt: skip


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


def test_texts_that_list_families_follow_the_table(monkeypatch) -> None:
    assert families_in_words() == "Llama, Mistral, Qwen2 and Qwen3"
    monkeypatch.delitem(FAMILIES, "qwen2")
    assert families_in_words("or") == "Llama, Mistral or Qwen3"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_gives_biases_only_where_the_class_reads_it(name: str) -> None:
    """Mistral and Qwen2 pass over attention_bias, Qwen3 over mlp_bias; Llama reads both."""
    require_the_model_s_own(CLASSES[name](**SIZES, attention_bias=True, mlp_bias=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_size_that_config_json_does_not_name_is_the_class_s_own(name: str) -> None:
    config = CLASSES[name](**SIZES).to_dict()
    config.pop("head_dim", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CLASSES[name](**SIZES))
    assert ModelShape.of(config).head_dim == model.model.layers[0].self_attn.head_dim


def test_norms_of_queries_and_keys_go_through_pruning_and_export(tmp_path) -> None:
    """Count, tensors, pruning axes, GGUF shapes and head order of Qwen3, from one entry."""
    config = CONFIGS["qwen3"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    shape = ModelShape.of(checkpoint.config)
    assert prunable_shape(checkpoint) == shape
    assert axes_of("model.layers.1.self_attn.k_norm.weight") == ("head",)
    architecture: Architecture = read_architecture(tmp_path, checkpoint.config)
    mapped = map_tensors(tmp_path, architecture, checkpoint.shapes)
    assert set(mapped.values()) == set(shape.tensors)
    assert mapped["blk.1.attn_k_norm.weight"] == "model.layers.1.self_attn.k_norm.weight"
    assert gguf_name(architecture, "model.norm.weight") == "output_norm.weight"
    assert row_order(architecture, "blk.0.attn_q.weight") is None


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Qwen2Config(**SIZES, rope_parameters=LLAMA3), "Llama-3's position scaling"),
        (Qwen3Config(**SIZES, head_dim=16, rope_parameters=LLAMA3), "Llama-3's position scaling"),
        (Qwen3Config(**SIZES, head_dim=16, attention_bias=True), "a bias in o_proj"),
    ],
)
def test_what_llama_cpps_graph_of_a_family_does_not_read_is_refused(tmp_path, config, words):
    """It would load no such file, or (without the divisors) answer as another model."""
    with pytest.raises(InputError, match=words):
        read_architecture(tmp_path, config.to_dict())
    read_architecture(tmp_path, LlamaConfig(**SIZES, rope_parameters=LLAMA3).to_dict())
    read_architecture(tmp_path, LlamaConfig(**SIZES, attention_bias=True).to_dict())
