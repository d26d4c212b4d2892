"""Block-wise recovery: a cut model whose layers learn, one after another, what the uncut gave."""

import json

import pytest
import torch
from tiny_cuts import build, loaded, words

from slimtune.config.compression import Pruning
from slimtune.inference import layer_lessons
from slimtune.models.weights import Checkpoint
from slimtune.pruning import recovery
from slimtune.pruning.anatomy import prunable_shape
from slimtune.pruning.depth import drop_layers
from slimtune.pruning.hidden import cut_hidden
from slimtune.pruning.recovery import Kept, recover_blocks
from slimtune.pruning.sizes import Ratios, smaller
from slimtune.pruning.width import cut_width

SETTINGS = Pruning(recovery_epochs=6)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch) -> None:
    monkeypatch.setattr(layer_lessons, "STEP_TOKENS", 100)


def cut(folder, axis: str) -> Kept:
    ratio = {"ffn": 0.5, "groups": 0.5} if axis == "width" else {axis: 0.5}
    shape = smaller(prunable_shape(Checkpoint(folder / "model")), Ratios(**ratio))
    scratch, source, out = folder / "scratch", folder / "model", folder / "cut"
    if axis == "layers":
        kept, _ = drop_layers(source, out, shape, words(), ends=True, scratch=scratch)
        return Kept(layers=kept)
    common = {"criterion": "activation", "batches": words(), "seed": 0, "scratch": scratch}
    if axis == "hidden":
        return Kept(hidden=cut_hidden(source, out, shape, solve=True, **common)[0])
    cut_width(source, out, shape, solve=False, **common)
    return Kept()


def recover(folder, kept: Kept, name: str = "out", settings: Pruning = SETTINGS):
    given = (folder / "model", folder / "cut", folder / name, words(60), settings)
    return recover_blocks(*given, folder / "scratch", kept)


@pytest.mark.parametrize(
    ("axis", "family"),
    [("width", "qwen3, biased"), ("width", "tied"), ("layers", "llama"), ("hidden", "llama")],
)
def test_what_layers_give_comes_closer_on_every_axis(tmp_path, axis, family):
    model = build(tmp_path / "model", family)
    found = recover(tmp_path, cut(tmp_path, axis))
    assert len(found.errors) == 2 if axis == "layers" else 4
    assert all(after <= before for before, after in found.errors)
    assert found.errors[-1][1] < 0.9 * found.errors[-1][0] and found.difference < 1e-4
    held = torch.randint(3, 96, (8, 20), generator=torch.Generator().manual_seed(9))
    before, after = (
        (loaded(tmp_path / name)(held).logits - model(held).logits).square().mean()
        for name in ("cut", "out")
    )
    assert after < before
    for name in ("config.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_the_learned_error_is_that_of_the_hidden_states(tmp_path):
    """Of the last layer, by transformers' own forward of both whole models."""
    model = build(tmp_path / "model")
    found = recover(tmp_path, cut(tmp_path, "width"))
    taught, shares = loaded(tmp_path / "out"), []
    for batch in words(60):
        meant, given = (_last_hidden(one, batch.ids)[batch.real] for one in (model, taught))
        shares.append((given - meant).norm(dim=-1).square() / meant.norm(dim=-1).square())
    assert found.errors[-1][1] == pytest.approx(torch.cat(shares).mean().item(), rel=1e-3)


@torch.no_grad()
def _last_hidden(model, ids: torch.Tensor) -> torch.Tensor:
    seen = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(ids)
    hook.remove()
    return seen[0]


def test_a_layer_that_came_no_closer_is_left_as_it_was(tmp_path, monkeypatch):
    build(tmp_path / "model", dtype=torch.bfloat16)
    kept = cut(tmp_path, "width")
    monkeypatch.setattr(recovery, "_RATE", 1e6)
    found = recover(tmp_path, kept)
    assert all(before == after for before, after in found.errors)
    old, new = Checkpoint(tmp_path / "cut"), Checkpoint(tmp_path / "out")
    assert old.files == new.files and json.dumps(new.config) == json.dumps(old.config)
    for name in old.tensors:
        assert new.dtype(name) == torch.bfloat16
        assert torch.equal(old.read(name), new.read(name)), name


def test_the_seed_decides_and_one_layer_is_in_memory(tmp_path, monkeypatch):
    build(tmp_path / "model")
    kept, asked = cut(tmp_path, "width"), []
    layer = recovery.Stack.layer
    monkeypatch.setattr(
        recovery.Stack, "layer", lambda self, *a, **k: asked.append(a) or layer(self, *a, **k)
    )
    short = Pruning(recovery_epochs=1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recover(tmp_path, kept, name, short.model_copy(update={"seed": seed}))
    assert asked[:12] == [(index,) for index in range(4) for _ in range(3)]
    gates = [Checkpoint(tmp_path / n).read("model.layers.0.mlp.gate_proj.weight") for n in "abc"]
    assert torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])
