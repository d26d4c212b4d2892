"""Memory is predicted from config.json: parameters exactly, activations as autograd keeps them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from originals import DATA, originals
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen3Config,
)

from slimtune.models import memory, mixed
from slimtune.models.memory import MemoryEstimate, Recipe, estimate_memory, fit_verdict, training
from slimtune.models.model_shape import ModelShape
from slimtune.training import attention

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[3]
SMALL = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 320,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
REAL = {
    "Llama-2-7B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Qwen2-0.5B": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def published() -> dict[str, int]:
    """Configs of real models beside this checkout and how many parameters these have."""
    lines = (DATA / "shapes" / "TABLE.md").read_text(encoding="utf-8").splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {f"{name}.json": int(count.replace(",", "")) for name, *_, count in rows}


PUBLISHED = published() if originals("shapes", True) else {}


@pytest.mark.parametrize("name", [*REAL, *PUBLISHED])
def test_parameter_counts_of_real_shapes_are_exact(name):
    """As transformers builds them on torch's meta device, which holds no numbers."""
    shape = REAL[name] if name in REAL else json.loads((DATA / "shapes" / name).read_text("utf-8"))
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    count = ModelShape.of(shape).parameters
    assert count == built.num_parameters() and count == PUBLISHED.get(name, count)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}]
)
def test_parameter_counts_are_those_of_the_model_itself(changes):
    model = LlamaForCausalLM(LlamaConfig(**SMALL | changes))
    assert ModelShape.of(SMALL | changes).parameters == model.num_parameters()
    assert training(SMALL | changes, Recipe(), 96).weights == 4 * model.num_parameters()


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"]])
def test_adapter_parameters_are_pefts(targets):
    chosen = "all-linear" if targets == ["all-linear"] else targets
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    adapted = get_peft_model(model, LoraConfig(r=6, target_modules=chosen))
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert ModelShape.of(SMALL).adapter_parameters(6, targets) == trainable
    found = training(SMALL, Recipe(trainable), 96)
    assert found.adapter == found.gradients == found.optimizer // 2 == 4 * trainable
    eight_bits = training(SMALL, Recipe(trainable, optimizer="adamw_8bit"), 96)
    assert eight_bits.optimizer == 2 * trainable


# Heads together wider than the hidden size, with norms and without: Qwen3 and Mistral-Nemo.
WIDE = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL | {"head_dim": 32}, sliding_window=None),
    "qwen3": Qwen3Config(**SMALL | {"head_dim": 32}),
}


def kept_for_backward(
    *, lora, dtype, dropout, checkpointing=False, tokens=96, family="llama", half=False
):
    """Bytes that autograd saves in a forward pass through the decoder layers, counted by hooks."""
    model = AutoModelForCausalLM.from_config(WIDE[family]).to(dtype)
    decoder = model.model
    if half:
        model.set_attn_implementation(attention.register())
        (mixed.prepare if lora else mixed.learn)(model)
    if lora:
        config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=dropout)
        model = get_peft_model(model, config)
        model.enable_input_require_grads()
    if half and lora:
        mixed.adapt(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps it from reuse
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = decoder(torch.randint(0, 64, (1, tokens)), use_cache=False)
    del output
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stage", "dropout"), [("lora", 0.0), ("lora", 0.1), ("full", 0.0)])
def test_activations_are_what_autograd_keeps(stage, dropout, dtype, family):
    lora = stage == "lora"
    measured = kept_for_backward(lora=lora, dtype=dtype, dropout=dropout, family=family)
    shape = ModelShape.of(WIDE[family].to_dict())
    layer = memory.activation_bytes(shape, stage, dtype.itemsize, dropout)
    predicted = 96 * (shape.layers * layer + shape.hidden * dtype.itemsize)
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_bfloat16_on_a_cpu_keeps_about_half_of_what_float32_does(dropout, family):
    measured = kept_for_backward(
        lora=True, dtype=torch.bfloat16, dropout=dropout, family=family, half=True
    )
    shape = ModelShape.of(WIDE[family].to_dict())
    layer = memory.activation_bytes(shape, "mixed", 2, dropout)
    assert 96 * (shape.layers * layer + shape.hidden * 2) == pytest.approx(measured, rel=0.07)
    assert layer < 0.55 * memory.activation_bytes(shape, "lora", 4, dropout)


@pytest.mark.parametrize("family", WIDE)
def test_all_weights_that_learn_in_bfloat16_keep_no_more_than_adapters_do(family):
    measured = kept_for_backward(
        lora=False, dtype=torch.float32, dropout=0.0, family=family, half=True
    )
    shape = ModelShape.of(WIDE[family].to_dict())
    layer = memory.activation_bytes(shape, "mixed", 2, 0.0)
    assert 96 * (shape.layers * layer + shape.hidden * 2) == pytest.approx(measured, rel=0.07)
    whole = training(WIDE[family].to_dict(), Recipe(itemsize=2), 96)
    assert whole.weights == 4 * shape.parameters
    assert whole.activations < 0.55 * training(WIDE[family].to_dict(), Recipe(), 96).activations


def test_activation_checkpointing_keeps_one_layer_and_the_inputs_of_all():
    measured = kept_for_backward(lora=True, dtype=torch.float32, dropout=0.0, checkpointing=True)
    plain = training(SMALL, Recipe(1, device="cuda"), 96).activations / 1.1
    saved = Recipe(1, device="cuda", activation_checkpointing=True)
    kept = training(SMALL, saved, 96).activations / 1.1
    one_layer = plain / SMALL["num_hidden_layers"]
    assert kept - one_layer == pytest.approx(measured, rel=0.1)
    assert kept < 0.5 * plain


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("quantization", "limit"), [("nf4", 8e9), ("none", 16e9)])
def test_llama_2_7b_on_a_gpu_of_8_and_16_gb(quantization, limit, rows):
    """QLoRA and LoRA in bf16: r = 8 on all linear layers, 512 tokens a row, checkpointing."""
    llama = REAL["Llama-2-7B"]
    trained = ModelShape.of(llama).adapter_parameters(8, ["all-linear"])
    assert trained == 19_988_480
    recipe = Recipe(trained, 2, quantization, activation_checkpointing=True, device="cuda")
    found = training(llama, recipe, rows * 512)
    assert 0.6 * limit < found.total < limit
    assert found.weights == (4_390_412_288 if quantization == "nf4" else 2 * 6_738_415_616)


def test_four_bits_shrink_the_linear_layers_only():
    llama = REAL["Llama-2-7B"]
    half = estimate_memory(llama, "inference", itemsize=2).weights
    quantised = estimate_memory(llama, "inference", itemsize=2, quantization="nf4").weights
    assert half == 2 * 6_738_415_616
    assert quantised == pytest.approx(3.34e9 + 2 * 262e6, rel=0.01)


def test_cache_grows_with_tokens_and_streaming_with_nothing():
    one = estimate_memory(SMALL, "inference", batch_size=1, max_length=100)
    eight = estimate_memory(SMALL, "inference", batch_size=8, max_length=100)
    assert eight.cache == 8 * one.cache == 8 * 100 * 4 * 2 * 2 * 16 * 4
    assert estimate_memory(SMALL, "stream") == estimate_memory({}, "stream")


def test_the_verdict_names_the_parts_and_the_way_out():
    needed = MemoryEstimate(weights=2 * 10**9, cache=10**9)
    assert needed.total == 3 * 10**9
    assert fit_verdict(needed, 4 * 10**9).endswith("fits")
    assert "weights 2.00 GB" in fit_verdict(needed, 10**9)
    assert "NOT fit" in fit_verdict(needed, 3 * 10**9)


def test_a_containers_limit_counts(tmp_path):
    assert 0 < memory.available_memory() < 1 << 50
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_memory(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert memory._container_memory(tmp_path) == 500


def test_an_estimate_needs_no_torch():
    code = (
        "import sys; from slimtune.models.memory import estimate_memory, available_memory;"
        f"estimate_memory({SMALL}, 'inference'); available_memory(); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "finetune", check=True)
