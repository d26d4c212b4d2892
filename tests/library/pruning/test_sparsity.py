"""Zeros where they were asked for, exactly as many, and a merge that keeps them."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_cuts import build, loaded, words

from slimtune.errors import QualityError
from slimtune.models.merging import merge_adapter
from slimtune.models.weights import Checkpoint, CheckpointWriter
from slimtune.pruning.sparsity import sparsify


def asked(method="magnitude", pattern="unstructured", share=0.5):
    return SimpleNamespace(sparsity=share, sparsity_pattern=pattern, sparsity_method=method)


def linears(folder):
    checkpoint = Checkpoint(folder)
    return {n: checkpoint.read(n) for n in checkpoint.tensors if n.endswith("proj.weight")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["magnitude", "global", "wanda"])
def test_the_smallest_half_is_zero_and_the_rest_untouched(tmp_path, method, dtype):
    build(tmp_path / "model", dtype=dtype)
    batches = words() if method == "wanda" else None
    sparsify(tmp_path / "model", tmp_path / "out", asked(method), batches, tmp_path / "s")
    before, after = linears(tmp_path / "model"), linears(tmp_path / "out")
    zeros = sum((weight == 0).sum().item() for weight in after.values())
    assert zeros / sum(w.numel() for w in after.values()) == pytest.approx(0.5, abs=0.01)
    for name, weight in after.items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        if method == "magnitude":
            assert before[name][kept].abs().min() >= before[name][~kept].abs().max()
    if method == "global":
        gone = torch.cat([before[n][w == 0].abs() for n, w in after.items()])
        left = torch.cat([before[n][w != 0].abs() for n, w in after.items()])
        assert left.min() > gone.max()
    checkpoint = Checkpoint(tmp_path / "out")
    assert checkpoint.bytes == Checkpoint(tmp_path / "model").bytes
    assert checkpoint.config["sparsity"] == {"share": 0.5, "pattern": "unstructured"}


def test_wanda_weighs_by_the_inputs_and_compares_within_a_row(tmp_path):
    model, batches = build(tmp_path / "model"), words()
    query, seen = model.model.layers[0].self_attn.q_proj, []
    query.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    for number, batch in enumerate(batches):
        model(batch.ids)
        seen[number] = seen[number][batch.real].detach()
    scores = query.weight.detach().abs() * torch.cat(seen).square().sum(0).sqrt()
    sparsify(tmp_path / "model", tmp_path / "out", asked("wanda"), batches, tmp_path / "s")
    found = loaded(tmp_path / "out").model.layers[0].self_attn.q_proj.weight == 0
    lowest = scores.topk(32, dim=1, largest=False).indices
    assert torch.equal(found, torch.zeros_like(found).scatter(1, lowest, True))


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_n_of_m_holds_in_every_group_of_neighbours(tmp_path, pattern, n, m, method):
    build(tmp_path / "model")
    settings = asked(method, pattern)
    sparsify(tmp_path / "model", tmp_path / "out", settings, words(), tmp_path / "s")
    for weight in linears(tmp_path / "out").values():
        assert ((weight.reshape(-1, m) != 0).sum(dim=1) == n).all()


def test_a_merge_into_a_sparse_model_brings_no_zero_back(tmp_path):
    build(tmp_path / "model")
    sparsify(tmp_path / "model", tmp_path / "sparse", asked(), None, tmp_path / "s")
    for base in ("sparse", "model"):
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(loaded(tmp_path / base), config).save_pretrained(tmp_path / f"{base}-lora")
        merge_adapter(tmp_path / base, tmp_path / f"{base}-lora", tmp_path / f"{base}-merged")
    sparse, merged = linears(tmp_path / "sparse"), linears(tmp_path / "sparse-merged")
    for name, weight in sparse.items():
        assert torch.equal(merged[name] == 0, weight == 0)
        assert not torch.equal(merged[name], weight)
    assert "sparsity" in json.loads((tmp_path / "sparse-merged" / "config.json").read_text())
    dense = linears(tmp_path / "model-merged")
    assert not any((weight == 0).any() for weight in dense.values())


def test_a_folder_that_does_not_hold_what_was_meant_is_refused(tmp_path, monkeypatch):
    build(tmp_path / "model")
    write = CheckpointWriter.write

    def twice(self, name, rows, start=0):
        write(self, name, rows * 2, start)

    monkeypatch.setattr(CheckpointWriter, "write", twice)
    with pytest.raises(QualityError, match="not the sparse one"):
        sparsify(tmp_path / "model", tmp_path / "out", asked(), None, tmp_path / "s")
