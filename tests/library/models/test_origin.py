"""An adapter knows the weights it was trained on; a base of the same shape is another base."""

import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from running import refused, succeeds
from safetensors.torch import load_file, save_file
from tiny_folders import swap_two_tokens, write_tiny_llama
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from slimtune.models.adapters import Adapter
from slimtune.models.folders import local_folder
from slimtune.models.origin import fingerprint, recorded, say_if_unknown
from slimtune.models.weights import Checkpoint


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def print_of(folder):
    return fingerprint(Checkpoint(folder))


@pytest.mark.parametrize("kept_as", ["sharded", "float32", "moved"])
def test_the_same_weights_kept_otherwise_are_the_same_base(kept_as, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    other = tmp_path / "other"
    if kept_as == "moved":
        shutil.copytree(base, other)
    elif kept_as == "sharded":
        model.save_pretrained(other, max_shard_size="20KB")
    else:
        model.float().save_pretrained(other)
    assert print_of(other) == print_of(base)


def test_a_tied_output_layer_that_is_stored_as_well_changes_nothing(base, tmp_path):
    (base / "config.json").write_text(
        json.dumps(json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True})
    )
    before = print_of(base)
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert print_of(base) == before


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_one_trained_weight_makes_another_base(name, base):
    before = print_of(base)
    tensors = load_file(base / "model.safetensors")
    tensors[name] = tensors[name] * 1.1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert print_of(base) != before


def test_quantised_weights_have_no_fingerprint(base):
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert print_of(base) is None


def test_training_keeps_it_in_the_record_and_in_the_card(project, adapter, tmp_path):
    known = print_of(project / "base")
    assert json.loads((adapter / "run.json").read_text())["metrics"]["base_fingerprint"] == known
    shutil.copytree(adapter, tmp_path / "sent")
    (tmp_path / "sent" / "run.json").unlink()
    assert recorded(tmp_path / "sent") == recorded(adapter) == known


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate_model", "--merge", "--output-dir", "out"),
        ("evaluate_model", "--merge", "--dry-run", "--output-dir", "out"),
        ("evaluate_model", "--output", "out/results.csv"),
        ("evaluate_model", "--interactive"),
        ("convert_to_gguf", "--output-dir", "out"),
    ],
    ids=["merge", "dry merge", "evaluate", "chat", "convert"],
)
def test_a_base_of_the_same_shape_is_refused(
    words, settings, adapter, tmp_path, monkeypatch
) -> None:
    """The same architecture, the same vocabulary, and weights from another seed."""
    other = write_tiny_llama(tmp_path / "other", hidden=64, initializer_range=0.14)
    monkeypatch.chdir(tmp_path)
    script, *flags = words
    model = "--model-path" if script == "convert_to_gguf" else "--base-model"
    given = (model, other, "--lora-model", adapter)
    error = refused(3, "the weights are not", script, *settings, *given, *flags)
    assert "for another base" in error[0] and error[2].endswith("base")
    assert not (tmp_path / "out").exists()


def foreign(base, folder):
    """An adapter as plain peft saves it: without record and card of ours."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "as this one is called"),
        ({"base_model_name_or_path": "owner/Other-7B"}, "and this one is called base"),
        ({"revision": "abc"}, "its revision abc is not shown to be the base's"),
    ],
)
def test_of_an_adapter_of_others_it_is_said_that_nobody_knows(
    config, words, base, tmp_path, caplog
):
    adapter = Adapter(foreign(base, tmp_path / "adapter"))
    with caplog.at_level(logging.WARNING):
        say_if_unknown(adapter.folder, base, adapter.config | config)
    assert "not known whether it was trained on" in caplog.text and words in caplog.text


def test_of_an_adapter_of_ours_nothing_is_said(project, adapter, caplog):
    with caplog.at_level(logging.WARNING):
        say_if_unknown(adapter, project / "base", Adapter(adapter).config)
    assert not caplog.text


def test_merging_an_adapter_of_others_says_it_once(project, tmp_path, caplog):
    adapter = foreign(project / "base", tmp_path / "adapter")
    words = ("--base-model", project / "base", "--lora-model", adapter, "--merge")
    with caplog.at_level(logging.WARNING):
        succeeds("evaluate_model", *words)
    assert caplog.text.count("not known whether it was trained on") == 1


def test_a_vocabulary_that_gives_its_tokens_other_ids_is_another_bases(project, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(project / "base", base)
    adapter = foreign(base, tmp_path / "adapter")
    shutil.copy(base / "tokenizer.json", adapter)
    Adapter(adapter).require_base(Checkpoint(local_folder(base)))
    swap_two_tokens(base)
    words = ("--base-model", base, "--lora-model", adapter, "--merge")
    refused(3, "has another id", "evaluate_model", *words)
    assert not (tmp_path / "merged_model").exists()
