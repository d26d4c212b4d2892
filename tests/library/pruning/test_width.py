"""Cut neurons and KV groups: what is left is the dense model with those units at zero."""

import pytest
import torch
from tiny_cuts import FAMILIES, IDS, build, loaded, units_gone, without, words

from slimtune.errors import InputError, QualityError
from slimtune.models import weights
from slimtune.models.weights import Checkpoint
from slimtune.pruning import width
from slimtune.pruning.anatomy import prunable_shape
from slimtune.pruning.sizes import Ratios, smaller
from slimtune.pruning.width import cut_width


def cut(source, output, ffn=0.25, groups=0.25, **options):
    shape = smaller(prunable_shape(Checkpoint(source)), Ratios(ffn=ffn, groups=groups))
    options.setdefault("scratch", output.parent / "scratch")
    difference = cut_width(source, output, shape, **options)
    assert loaded(output).num_parameters() == shape.parameters
    return difference


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "biased"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_plain_cut_is_the_dense_model_with_those_units_at_zero(tmp_path, family, calibrated):
    model = build(tmp_path / "model", family)
    options = {"criterion": "activation", "batches": words(), "solve": False} if calibrated else {}
    assert cut(tmp_path / "model", tmp_path / "out", **options) < 1e-5
    found = loaded(tmp_path / "out")
    neurons, groups = units_gone(model, found)
    assert [len(gone) for gone in neurons] == [32] * 4 and [len(g) for g in groups] == [1] * 4
    expected = without(model, neurons, groups)
    torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "out" / "tokenizer.model").read_text() == "pieces"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_heads_that_do_not_divide_are_saved_under_the_class_that_allows_it(tmp_path):
    for family, expected in (("llama", "mistral"), ("qwen2", "qwen2")):
        build(tmp_path / family, family)
        cut(tmp_path / family, tmp_path / f"{family}-out")
        config = loaded(tmp_path / f"{family}-out").config
        assert (config.model_type, config.num_attention_heads) == (expected, 6)
        assert config.head_dim == 8 and config.sliding_window is None


def test_biases_have_no_class_that_allows_it_but_may_lose_dividing_heads(tmp_path):
    model = build(tmp_path / "model", "biased")
    with pytest.raises(InputError, match="biases"):
        cut(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cut(tmp_path / "model", tmp_path / "out", groups=0.5)
    found = loaded(tmp_path / "out")
    expected = without(model, *units_gone(model, found))
    torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-4)


def test_magnitude_keeps_what_a_loop_over_neurons_keeps(tmp_path):
    model = build(tmp_path / "model")
    cut(tmp_path / "model", tmp_path / "out", groups=0)
    gone, _ = units_gone(model, loaded(tmp_path / "out"))
    for layer, found in zip(model.model.layers, gone, strict=True):
        mlp = layer.mlp
        scores = [
            (up.norm() * gate.norm() * down.norm()).item()
            for up, gate, down in zip(
                mlp.up_proj.weight, mlp.gate_proj.weight, mlp.down_proj.weight.T, strict=True
            )
        ]
        assert found == sorted(sorted(range(128), key=scores.__getitem__)[:32])


@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_calibrated_criteria_agree_with_autograd_on_the_whole_model(tmp_path, criterion):
    """In the first layer, whose inputs no cut has changed."""
    model, batches = build(tmp_path / "model"), words()
    down, seen = model.model.layers[0].mlp.down_proj, []
    down.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    loss = 0
    for batch in batches:
        labels = batch.ids.masked_fill(~batch.real, -100)
        tokens = int((labels[:, 1:] != -100).sum())
        loss = loss + model(batch.ids, labels=labels).loss * tokens
        seen[-1] = seen[-1][batch.real]
    loss.backward()
    flow = torch.cat(seen).detach().square().sum(0) * down.weight.square().sum(0)
    mlp = model.model.layers[0].mlp
    slope = (down.weight * down.weight.grad).sum(0)
    slope = slope + sum((m.weight * m.weight.grad).sum(1) for m in (mlp.gate_proj, mlp.up_proj))
    scores = flow if criterion == "activation" else slope.abs()
    cut(tmp_path / "model", tmp_path / "out", criterion=criterion, batches=batches)
    gone = units_gone(model, loaded(tmp_path / "out"))[0][0]
    assert gone == scores.topk(32, largest=False).indices.sort().values.tolist()


def test_the_refit_brings_the_outputs_closer(tmp_path):
    model, errors = build(tmp_path / "model"), []
    held = torch.randint(3, 96, (8, 20), generator=torch.Generator().manual_seed(9))
    for solve in (False, True):
        options = {"criterion": "activation", "batches": words(200), "solve": solve}
        cut(tmp_path / "model", tmp_path / str(solve), **options)
        found = loaded(tmp_path / str(solve))
        errors.append((found(held).logits - model(held).logits).square().mean().item())
    assert errors[1] < 0.95 * errors[0]


def test_random_follows_its_seed(tmp_path):
    build(tmp_path / "model")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cut(tmp_path / "model", tmp_path / name, criterion="random", seed=seed)
    gates = [Checkpoint(tmp_path / n).read("model.layers.0.mlp.gate_proj.weight") for n in "abc"]
    assert torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])


def test_streaming_reads_only_a_few_rows_and_the_result_is_the_same(tmp_path, monkeypatch):
    build(tmp_path / "model", dtype=torch.bfloat16)
    cut(tmp_path / "model", tmp_path / "whole")
    monkeypatch.setattr(weights, "CHUNK_BYTES", 600)
    sizes, read = [], weights.read_tensor

    def watched(info, *rows):
        tensor = read(info, *rows)
        sizes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(weights, "read_tensor", watched)
    cut(tmp_path / "model", tmp_path / "rows")
    assert max(sizes) <= 600
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "rows" / file.name).read_bytes()


def test_a_folder_that_does_not_answer_as_it_should_is_refused(tmp_path, monkeypatch):
    build(tmp_path / "model")
    masked = width.masked
    monkeypatch.setattr(width, "masked", lambda *args: masked(*args) * 1.1)
    with pytest.raises(QualityError, match="does not answer"):
        cut(tmp_path / "model", tmp_path / "out")
