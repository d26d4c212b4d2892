"""Dropping layers by block influence, and hidden channels everywhere at once."""

import pytest
import torch
from tiny_cuts import FAMILIES, IDS, build, loaded, words
from torch import nn

from slimtune.errors import QualityError
from slimtune.inference.stack import Stack, read_layers
from slimtune.models.weights import Checkpoint
from slimtune.pruning import depth, hidden, writer
from slimtune.pruning.anatomy import prunable_shape
from slimtune.pruning.depth import drop_layers, influence
from slimtune.pruning.hidden import cut_hidden
from slimtune.pruning.sizes import Ratios, smaller


def shape(folder, **ratios):
    return smaller(prunable_shape(Checkpoint(folder)), Ratios(**ratios))


def test_influence_is_one_minus_the_cosine_of_input_and_output(tmp_path):
    model, batches = build(tmp_path / "model"), words()
    scores = influence(Stack.of(tmp_path / "model"), batches, tmp_path)
    states = [model(b.ids, output_hidden_states=True).hidden_states for b in batches]
    pairs = [
        torch.cat([s[i][b.real] for s, b in zip(states, batches, strict=True)]) for i in (1, 2)
    ]
    expected = 1 - nn.functional.cosine_similarity(*pairs, dim=-1).mean()
    torch.testing.assert_close(scores[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ends", [False, True])
def test_layers_that_do_next_to_nothing_go_but_not_at_the_ends(tmp_path, family, ends):
    model = build(tmp_path / "model", family)
    with torch.no_grad():
        for number in (0, 2):
            for parameter in model.model.layers[number].parameters():
                parameter.mul_(1e-3)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    left = shape(tmp_path / "model", layers=0.25)
    options = {"ends": ends, "scratch": tmp_path / "scratch"}
    kept, difference = drop_layers(tmp_path / "model", tmp_path / "out", left, words(), **options)
    assert difference < 1e-5
    assert len(kept) == 3 and ({0, 2} - set(kept) if ends else kept == [0, 1, 3])
    found = loaded(tmp_path / "out")
    model.model.layers = nn.ModuleList(model.model.layers[index] for index in kept)
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = 3
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits)
    assert [layer.self_attn.layer_idx for layer in found.model.layers] == [0, 1, 2]
    found.generate(IDS, max_new_tokens=3, do_sample=False)


@pytest.mark.parametrize("family", [f for f in FAMILIES])
def test_channels_that_carry_nothing_can_go_without_any_change(tmp_path, family):
    """A model with 32 silent channels: cutting half of 64 must leave its answers as they were."""
    model = build(tmp_path / "model", family)
    silent = torch.arange(0, 64, 2)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, silent] = 0
        for layer in model.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight[silent] = 0
                if module.bias is not None:
                    module.bias[silent] = 0
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    left = shape(tmp_path / "model", hidden=0.5)
    options = {"criterion": "activation", "batches": words(60), "seed": 0, "solve": False}
    cut_hidden(tmp_path / "model", tmp_path / "out", left, scratch=tmp_path / "s", **options)
    found = loaded(tmp_path / "out")
    assert found.config.hidden_size == 32 and found.num_parameters() == left.parameters
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=1e-3, atol=1e-3)


def test_refit_and_calibration_help_where_every_channel_carries_something(tmp_path):
    model, errors = build(tmp_path / "model"), {}
    held = torch.randint(3, 96, (8, 20), generator=torch.Generator().manual_seed(9))
    left = shape(tmp_path / "model", hidden=0.5)
    for criterion, batches, solve in (
        ("random", None, False),
        ("magnitude", None, False),
        ("activation", words(200), False),
        ("activation", words(200), True),
    ):
        name = f"{criterion}-{solve}"
        options = {"batches": batches, "solve": solve, "seed": 0, "scratch": tmp_path / "s"}
        out = tmp_path / name
        _, difference = cut_hidden(tmp_path / "model", out, left, criterion=criterion, **options)
        assert difference < 1e-4
        errors[name] = (loaded(out)(held).logits - model(held).logits).square().mean().item()
    assert errors["activation-True"] < errors["activation-False"]


def test_reading_layer_by_layer_is_the_model_s_own_perplexity(tmp_path):
    model, batches = build(tmp_path / "model", "tied"), words()
    total = count = 0
    for batch in batches:
        labels = batch.ids.masked_fill(~batch.real, -100)
        tokens = int((labels[:, 1:] != -100).sum())
        total += model(batch.ids, labels=labels).loss.item() * tokens
        count += tokens
    found = read_layers(tmp_path / "model", batches, tmp_path / "scratch")
    assert found.perplexity == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solve", [False, True])
def test_hidden_cuts_are_proven_in_every_family(tmp_path, family, solve):
    build(tmp_path / "model", family)
    left = shape(tmp_path / "model", hidden=0.5)
    options = {"criterion": "activation", "batches": words(), "solve": solve, "seed": 0}
    kept, difference = cut_hidden(
        tmp_path / "model", tmp_path / "out", left, scratch=tmp_path, **options
    )
    assert kept == sorted(kept) and len(kept) == 32 and difference < 1e-4


def damage(folder) -> None:
    """One matrix of the folder holds other numbers than were meant."""
    name = "model.layers.0.mlp.up_proj.weight"
    info = Checkpoint(folder).tensors[name]
    with info.file.open("r+b") as file:
        file.seek(info.offset)
        file.write(torch.ones(info.shape).numpy().tobytes())


@pytest.mark.parametrize("batches", [None, words()])
@pytest.mark.parametrize("kind", ["depth", "hidden"])
def test_a_folder_that_was_damaged_is_refused(tmp_path, monkeypatch, kind, batches):
    build(tmp_path / "model")
    equal = writer.require_equal

    def after_damage(folder, *rest):
        damage(folder)
        return equal(folder, *rest)

    monkeypatch.setattr(depth if kind == "depth" else hidden, "require_equal", after_damage)
    options = {"scratch": tmp_path / "s"}
    with pytest.raises(QualityError, match="does not answer"):
        if kind == "depth":
            left = shape(tmp_path / "model", layers=0.25)
            drop_layers(tmp_path / "model", tmp_path / "out", left, words(), ends=False, **options)
        else:
            left = shape(tmp_path / "model", hidden=0.5)
            options |= {"criterion": "magnitude", "batches": batches, "solve": True, "seed": 0}
            cut_hidden(tmp_path / "model", tmp_path / "out", left, **options)


def test_a_model_too_large_to_keep_what_was_solved_is_not_proven(tmp_path, monkeypatch):
    build(tmp_path / "model")
    monkeypatch.setattr(writer, "_WHOLE", 0)
    left = shape(tmp_path / "model", hidden=0.5)
    options = {"criterion": "magnitude", "solve": True, "seed": 0, "scratch": tmp_path / "s"}
    options["batches"] = words()
    _, difference = cut_hidden(tmp_path / "model", tmp_path / "out", left, **options)
    assert difference is None
