"""Pruning FFN neurons leaves a smaller ordinary checkpoint, as a loop over neurons would."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from slimtune.console import InputError, SettingsError
from slimtune.models import checkpoints
from slimtune.models.checkpoints import Checkpoint
from slimtune.pruning.structure import ffn_multiple, ffn_size, prune

torch.set_num_threads(1)
IDS = torch.arange(3, 15).reshape(2, 6)
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def build(folder, config=LlamaConfig, dtype=torch.float32, **changes):
    """A random model in several shards, beside it a tokenizer.model that must come along."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES | changes)).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "tokenizer.model").write_text("pieces")
    return model.eval()


@pytest.mark.parametrize(
    ("neurons", "ratio", "size"),
    [
        (11008, 0.25, 8192),
        (11008, 0.33, 7424),
        (5632, 0.25, 4352),
        (768, 0.33, 512),
        (512, 0.5, 256),
        (512, 0.99, 256),
        (172, 0.25, 128),
        (172, 0.99, 32),
        (48, 0.25, 40),
    ],
)
def test_the_size_left_is_the_nearest_multiple(neurons, ratio, size):
    assert ffn_size(neurons, ratio) == size
    assert size % ffn_multiple(neurons) == 0


@pytest.mark.parametrize(("neurons", "ratio"), [(512, 0.25), (128, 0.05), (11008, 0), (768, 1)])
def test_a_ratio_that_is_no_cut_names_one_that_is(neurons, ratio):
    with pytest.raises(SettingsError) as error:
        ffn_size(neurons, ratio)
    assert ffn_size(neurons, float(error.value.cure.rsplit(" ", 1)[1])) < neurons


def test_an_ffn_that_cannot_be_cut_is_an_input_error():
    with pytest.raises(InputError, match="too small"):
        ffn_size(8, 0.5)


def smaller_by_hand(model, size):
    """The same model with the strongest neurons only, found one neuron at a time."""
    config = type(model.config)(**model.config.to_dict() | {"intermediate_size": size})
    small = AutoModelForCausalLM.from_config(config).eval()
    state = model.state_dict()
    for index, layer in enumerate(model.model.layers):
        gate, up, down = (getattr(layer.mlp, f"{p}_proj") for p in ("gate", "up", "down"))
        scores = [
            (gate.weight[j].norm() * up.weight[j].norm() * down.weight[:, j].norm()).item()
            for j in range(model.config.intermediate_size)
        ]
        kept = sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:size])
        prefix = f"model.layers.{index}.mlp."
        for name in [n for n in state if n.startswith(prefix) and n != prefix + "down_proj.bias"]:
            axis = 1 if "down_proj" in name else 0
            state[name] = state[name].index_select(axis, torch.tensor(kept))
    small.load_state_dict(state)
    return small


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True}),
        (Qwen2Config, {}),
    ],
)
def test_the_pruned_folder_loads_and_is_the_model_pruned_by_hand(tmp_path, config, changes):
    model = build(tmp_path / "model", config, **changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms, too
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    report = prune(tmp_path / "model", tmp_path / "pruned", ffn_ratio=0.5)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    expected = smaller_by_hand(model, 64)
    torch.testing.assert_close(found(IDS).logits, expected(IDS).logits)
    assert report.parameters_before == model.num_parameters()
    assert report.parameters_after == found.num_parameters() < report.parameters_before
    assert report.bytes_after < report.bytes_before
    assert (report.ffn_before, report.ffn_after, found.config.intermediate_size) == (128, 64, 64)
    assert (tmp_path / "pruned" / "tokenizer.model").read_text() == "pieces"
    assert len(list((tmp_path / "pruned").glob("*.safetensors"))) > 1


def test_a_neuron_that_does_nothing_goes_first(tmp_path):
    model = build(tmp_path / "model")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[::2] = 0
            layer.mlp.down_proj.weight[:, 1] = 0
    model.save_pretrained(tmp_path / "model")
    prune(tmp_path / "model", tmp_path / "pruned", ffn_ratio=0.25)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits)


def test_random_follows_its_seed(tmp_path):
    build(tmp_path / "model")
    options = {"ffn_ratio": 0.5, "criterion": "random"}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prune(tmp_path / "model", tmp_path / name, seed=seed, **options)
    gates = [Checkpoint(tmp_path / n).read("model.layers.0.mlp.gate_proj.weight") for n in "abc"]
    assert torch.equal(gates[0], gates[1])
    assert not torch.equal(gates[0], gates[2])


def test_only_a_few_rows_are_ever_read_and_the_result_is_the_same(tmp_path, monkeypatch):
    build(tmp_path / "model", dtype=torch.bfloat16)
    prune(tmp_path / "model", tmp_path / "whole", ffn_ratio=0.5)
    monkeypatch.setattr(checkpoints, "CHUNK_BYTES", 600)
    sizes = []
    read = checkpoints.read_tensor

    def watched(info, *rows):
        tensor = read(info, *rows)
        sizes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(checkpoints, "read_tensor", watched)
    prune(tmp_path / "model", tmp_path / "rows", ffn_ratio=0.5)
    assert max(sizes) <= 600
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "rows" / file.name).read_bytes()


@pytest.mark.parametrize("part", ["gate_proj", "down_proj", "norm"])
def test_nan_is_found_wherever_it_is(tmp_path, part):
    build(tmp_path / "model")
    for file in (tmp_path / "model").glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if part in name:
                tensors[name].reshape(-1)[3] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN"):
        prune(tmp_path / "model", tmp_path / "pruned", ffn_ratio=0.5)


@pytest.mark.parametrize("change", [{"quantization_config": {}}, {"intermediate_size": 96}])
def test_what_cannot_be_pruned_is_refused_before_anything_is_written(tmp_path, change):
    build(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError):
        prune(tmp_path / "model", tmp_path / "pruned", ffn_ratio=0.5)
    assert not (tmp_path / "pruned").exists()


def test_an_unknown_criterion_names_those_there_are(tmp_path):
    with pytest.raises(SettingsError, match="magnitude"):
        prune(tmp_path, tmp_path, ffn_ratio=0.5, criterion="magnitud")
