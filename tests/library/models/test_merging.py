"""A merged folder equals peft's own merge to the bit, streams where it can, refuses a misfit."""

import json
import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
)

from slimtune.errors import InputError
from slimtune.models import weights
from slimtune.models.merging import merge_adapter
from slimtune.models.weights import Checkpoint

torch.set_num_threads(1)
IDS = torch.arange(3, 15).reshape(2, 6)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def world(folder, *, dtype=torch.bfloat16, tied=False, targets=LINEAR, kind=LlamaConfig, **lora):
    """Paths of a base in two or more shards and of an adapter whose B is not zero."""
    torch.manual_seed(0)
    config = kind(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config).to(dtype)
    base.save_pretrained(folder / "base", max_shard_size="60KB")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, target_modules=targets, **lora))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.requires_grad:
            parameter.data += 0.01
    model.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", folder / "merged"


def by_peft(base, adapter, dtype):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"kind": Qwen3Config},
        {"kind": Qwen3Config, "use_dora": True},
    ],
)
def test_every_bit_is_pefts_own(tmp_path, dtype, lora):
    base, adapter, merged = world(tmp_path, dtype=dtype, **lora)
    report = merge_adapter(base, adapter, merged)
    expected, found = by_peft(base, adapter, dtype), Checkpoint(merged)
    assert report.streamed
    assert report.changed == 14
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.read(name), tensor) for name, tensor in expected.items())
    assert found.files == Checkpoint(base).files
    assert len(set(found.files.values())) > 1


def test_rows_at_a_time_give_the_same_bits(tmp_path, monkeypatch):
    base, adapter, merged = world(tmp_path)
    monkeypatch.setattr(weights, "CHUNK_BYTES", 700)
    largest = 0
    read = weights.read_tensor

    def watched(info, *rows):
        nonlocal largest
        tensor = read(info, *rows)
        largest = max(largest, tensor.nbytes)
        return tensor

    monkeypatch.setattr(weights, "read_tensor", watched)
    merge_adapter(base, adapter, merged)
    expected, found = by_peft(base, adapter, torch.bfloat16), Checkpoint(merged)
    assert largest <= 700
    assert all(torch.equal(found.read(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_with_lora_is_right_even_where_it_was_tied(tmp_path, tied):
    base, adapter, merged = world(tmp_path, dtype=torch.float32, tied=tied, targets=["lm_head"])
    assert merge_adapter(base, adapter, merged).streamed
    with_adapter = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter)
    found = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(found(IDS).logits, with_adapter(IDS).logits)
    embedding = "model.embed_tokens.weight"
    assert torch.equal(Checkpoint(merged).read(embedding), Checkpoint(base).read(embedding))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("tied", "lora"),
    [
        (False, {"use_dora": True}),
        (False, {"use_dora": True, "use_rslora": True}),
        (False, {"modules_to_save": ["lm_head"]}),
        (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"targets": ["lm_head", "q_proj"]}),
        (False, {"trainable_token_indices": [7, 3, 90]}),
        (True, {"trainable_token_indices": [7, 3, 90]}),
    ],
)
def test_beyond_plain_lora_every_bit_is_pefts_own_too(tmp_path, dtype, tied, lora):
    base, adapter, merged = world(tmp_path, dtype=dtype, tied=tied, **lora)
    assert merge_adapter(base, adapter, merged).streamed
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype).state_dict()
    for name, tensor in by_peft(base, adapter, dtype).items():
        assert torch.equal(found[name], tensor.to(dtype)), name


# peft 0.21 changes a tied output layer with its embedding, rounds an embedding's delta by itself.
@pytest.mark.parametrize(
    ("tied", "lora"),
    [
        (True, {"modules_to_save": ["lm_head"]}),
        (True, {"modules_to_save": ["embed_tokens"]}),
        (False, {"targets": ["q_proj", "embed_tokens"]}),
        (True, {"targets": ["q_proj", "embed_tokens"]}),
        (True, {"targets": ["q_proj", "embed_tokens", "lm_head"]}),
    ],
)
def test_where_peft_merges_wrongly_the_adapters_own_answers_count(tmp_path, tied, lora):
    base, adapter, merged = world(tmp_path, dtype=torch.float32, tied=tied, **lora)
    with_adapter = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter).eval()
    assert merge_adapter(base, adapter, merged).streamed
    found = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(found(IDS).logits, with_adapter(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_make_the_vocabulary_larger(tmp_path, tied):
    base, _, merged = world(tmp_path, tied=tied)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.resize_token_embeddings(104)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "resized", save_embedding_layers=True)
    assert merge_adapter(base, tmp_path / "resized", merged).streamed
    found, expected = AutoModelForCausalLM.from_pretrained(merged), model.merge_and_unload()
    assert found.config.vocab_size == 104
    assert found.config.tie_word_embeddings == tied
    assert torch.equal(found.get_input_embeddings().weight, expected.model.embed_tokens.weight)
    assert torch.equal(found.get_output_embeddings().weight, expected.lm_head.weight)


def test_a_vocabulary_of_which_only_half_was_saved_is_refused(tmp_path):
    base, adapter, merged = world(tmp_path)
    name = "base_model.model.model.embed_tokens.weight"
    change(adapter, lambda t: t.update({name: torch.zeros(104, 64)}))
    with pytest.raises(InputError, match="104 rows"):
        merge_adapter(base, adapter, merged)


def test_what_does_not_stream_goes_through_peft_and_says_so(tmp_path, caplog):
    targets = ["q_proj", "embed_tokens"]
    base, adapter, merged = world(tmp_path, dtype=torch.float32, targets=targets, use_dora=True)
    with_adapter = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter).eval()
    with caplog.at_level(logging.WARNING):
        assert not merge_adapter(base, adapter, merged).streamed
    assert "in memory" in caplog.text
    found = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(found(IDS).logits, with_adapter(IDS).logits, rtol=1e-4, atol=1e-5)


def test_transposed_weights_are_refused(tmp_path):
    base, adapter, merged = world(tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    with pytest.raises(InputError, match="transposed"):
        merge_adapter(base, adapter, merged)


def test_an_adapter_trained_on_four_bits_merges_into_the_sixteen_bit_base(tmp_path):
    """What QLoRA saves is an adapter like any other; only the quantised base is no base."""
    base, _, merged = world(tmp_path)
    four = LlamaForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    model = get_peft_model(four, LoraConfig(r=4, target_modules=LINEAR))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "qlora")
    assert merge_adapter(base, tmp_path / "qlora", merged).streamed
    found = Checkpoint(merged)
    for name, tensor in by_peft(base, tmp_path / "qlora", torch.bfloat16).items():
        assert torch.equal(found.read(name), tensor), name


def change(adapter, edit):
    tensors = load_file(adapter / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_an_adapter_tensor_that_nothing_uses_is_named(tmp_path):
    base, adapter, merged = world(tmp_path)
    change(adapter, lambda t: t.update({"base_model.model.stray.lora_A.weight": torch.ones(4, 64)}))
    with pytest.raises(InputError, match="stray"):
        merge_adapter(base, adapter, merged)


def test_an_adapter_for_more_layers_is_for_another_base(tmp_path):
    base, adapter, merged = world(tmp_path)
    name = "base_model.model.model.layers.{}.mlp.up_proj.lora_{}.weight"
    change(
        adapter,
        lambda t: [t.update({name.format(7, x): t[name.format(0, x)].clone()}) for x in "AB"],
    )
    with pytest.raises(InputError, match="another base"):
        merge_adapter(base, adapter, merged)
    assert not merged.exists()


def test_nan_never_reaches_a_merged_model(tmp_path):
    base, adapter, merged = world(tmp_path)
    change(adapter, lambda t: next(iter(t.values())).fill_(float("nan")))
    with pytest.raises(InputError, match="not finite"):
        merge_adapter(base, adapter, merged)


def test_a_quantised_base_is_refused(tmp_path):
    base, adapter, merged = world(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(InputError, match="quantised"):
        merge_adapter(base, adapter, merged)


def test_tokenizer_and_template_are_the_adapters_the_rest_is_the_bases(tmp_path):
    base, adapter, merged = world(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "LICENSE"):
        (base / name).write_text("base")
    (base / "README.md").write_text("It speaks of the base.")
    for name in ("tokenizer_config.json", "chat_template.jinja", "README.md", "run.json"):
        (adapter / name).write_text("adapter")
    merge_adapter(base, adapter, merged)
    assert (merged / "tokenizer.model").read_text() == "base"
    assert (merged / "tokenizer_config.json").read_text() == "adapter"
    assert (merged / "chat_template.jinja").read_text() == "adapter"
    assert (merged / "LICENSE").read_text() == "base"
    assert (merged / "config.json").read_bytes() == (base / "config.json").read_bytes()
    for name in ("special_tokens_map.json", "README.md", "run.json", "adapter_config.json"):
        assert not (merged / name).exists()
