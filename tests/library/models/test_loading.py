"""Models load in the hardware's numbers, in 4 bits, with adapters; wrong folders are explained."""

import json
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from slimtune.config import ModelSection
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.models import compute, loading
from slimtune.models.compute import Compute, choose_device, choose_dtype

torch.set_num_threads(1)
IDS = torch.arange(12).reshape(2, 6)
NF4 = Compute.choose("cpu", quantization="nf4")


def build(folder, *, hidden=64, inner=128, tied=False, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    return model.eval()


def adapt(base, folder):
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_16_bit_model_computes_in_float32_on_a_cpu(tmp_path, tied):
    model = build(tmp_path, tied=tied, dtype=torch.bfloat16)
    loaded = loading.load_model(tmp_path, Compute.choose("cpu"))
    assert loaded.dtype == torch.float32
    assert not loaded.training
    expected = model.state_dict()
    assert all(torch.equal(t, expected[n].float()) for n, t in loaded.state_dict().items())
    assert loading.load_model(tmp_path, Compute.choose("cpu", "bfloat16")).dtype == torch.bfloat16


def test_four_bits_run_forward_and_backward_on_a_cpu(tmp_path):
    model = build(tmp_path)
    loaded = loading.load_model(tmp_path, NF4)
    layer = loaded.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.quant_state.nested, "double quantisation"
    assert loaded.dtype == torch.float32
    assert layer.compute_dtype == NF4.products
    exact, near = model(IDS).logits, loaded(IDS).logits
    assert 0 < (exact - near).norm() / exact.norm() < 0.3
    trained = get_peft_model(loaded, LoraConfig(r=4, target_modules=["q_proj"]))
    trained(IDS, labels=IDS).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in trained.parameters())


def test_an_adapter_acts_as_it_did_in_training(tmp_path):
    build(tmp_path / "base")
    trained = adapt(tmp_path / "base", tmp_path / "adapter")
    loaded = loading.load_model(
        tmp_path / "base", Compute.choose("cpu"), adapter=tmp_path / "adapter"
    )
    assert isinstance(loaded, PeftModel)
    assert torch.equal(loaded(IDS).logits, trained(IDS).logits)
    with loaded.disable_adapter():
        assert not torch.allclose(loaded(IDS).logits, trained(IDS).logits)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_output_layer_gets_whole_rows(tmp_path, adapted):
    """Of a view with gaps torch copied a frozen head for each row: 2.2 GB for 40 of SmolLM2."""
    build(tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "adapter")
    adapter = tmp_path / "adapter" if adapted else None
    model, seen = loading.load_model(tmp_path / "base", adapter=adapter), []
    model.get_output_embeddings().register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].is_contiguous())
    )
    model(IDS.repeat(3, 1), logits_to_keep=1)
    assert seen == [True]


def test_an_adapter_of_another_base_names_both(tmp_path):
    build(tmp_path / "base")
    build(tmp_path / "other", hidden=128)
    adapt(tmp_path / "base", tmp_path / "adapter")
    with pytest.raises(InputError) as error:
        loading.load_model(tmp_path / "other", adapter=tmp_path / "adapter")
    assert str(tmp_path / "other") in error.value.what
    assert str(tmp_path / "base") in error.value.cure


@pytest.mark.parametrize("lost", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_refused(tmp_path, lost):
    build(tmp_path / "base")
    adapt(tmp_path / "base", tmp_path / "adapter")
    (tmp_path / "adapter" / lost).unlink()
    with pytest.raises(InputError, match=lost):
        loading.load_model(tmp_path / "base", adapter=tmp_path / "adapter")


def test_weights_that_are_missing_are_never_replaced_by_random_ones(tmp_path):
    build(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="3 layers in config.json, 2 in the weights"):
        loading.load_model(tmp_path)


@pytest.mark.parametrize("change", [{"intermediate_size": 64}, {"model_type": "unheard-of"}])
def test_a_config_that_does_not_fit_is_an_input_error(tmp_path, change):
    build(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match="cannot load"):
        loading.load_model(tmp_path)


def test_a_gpu_that_is_not_there_is_a_resource_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="no GPU"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    assert "float32" in Compute.choose().explain()


def test_a_decision_is_made_of_the_settings_and_crosses_into_a_child(tmp_path):
    build(tmp_path)
    decided = Compute.of(ModelSection(device="cpu", dtype="bfloat16", quantization="int8"))
    assert (decided.device, decided.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert decided.quantized and decided.explain().endswith("(int8), bfloat16: as set")
    crossed = pickle.loads(pickle.dumps(decided))
    assert crossed == decided
    assert loading.load_model(tmp_path, crossed.keeping("none")).dtype == torch.bfloat16


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(SettingsError, match="float16 on a CPU"):
        Compute.choose("cpu", "float16")


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bf16_only_where_it_has_it(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_dtype("auto") == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_four_bits_multiply_in_bf16_on_cpus_that_have_it(monkeypatch, tmp_path, native, expected):
    build(tmp_path)
    monkeypatch.setattr(compute, "multiplies_bfloat16", lambda: native)
    said = NF4.explain()
    assert ("multiplied in bfloat16 (this CPU has AVX512-BF16)" in said) == native
    assert "float32: " in said and "multiplied" not in Compute.choose("cpu").explain()
    assert Compute.choose("cpu", "float32").products == torch.float32, "as set"
    loaded = loading.load_model(tmp_path, NF4)
    assert loaded.model.layers[0].mlp.up_proj.compute_dtype == getattr(torch, expected)
    assert loaded.dtype == loaded(IDS).logits.dtype == torch.float32


def test_four_bits_answer_whatever_the_size_of_a_layer(tmp_path):
    """688 = 21.5 · 32: bitsandbytes' packing for CPUs with AVX512-BF16 fails at it."""
    model = build(tmp_path, inner=688)
    loaded = loading.load_model(tmp_path, NF4)
    with torch.no_grad():
        exact, near = model(IDS).logits, loaded(IDS).logits
    assert (exact - near).norm() / exact.norm() < 0.3


def test_four_bits_without_bitsandbytes_are_a_resource_error(tmp_path, monkeypatch):
    build(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match="needs bitsandbytes"):
        loading.load_model(tmp_path, NF4)


def test_save_writes_what_the_hub_library_loads(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(loading.tokenizers, "save_tokenizer", lambda *given: calls.append(given))
    model = build(tmp_path / "base")
    loading.save_model(model, "tokenizer", tmp_path / "saved", tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert calls == [("tokenizer", tmp_path / "saved", tmp_path / "base")]
    assert not list((tmp_path / "saved").glob("*.bin"))
