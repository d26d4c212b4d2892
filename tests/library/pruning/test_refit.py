"""The closed-form refit is ridge regression on the calibration inputs, and it helps."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from slimtune.models import tokenizers
from slimtune.models.checkpoints import Checkpoint
from slimtune.pruning.criteria import magnitude
from slimtune.pruning.refit import RIDGE, refit
from slimtune.pruning.structure import prune, score_layer, strongest

torch.set_num_threads(1)
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
STORIES = DATA / "stories260K"


def world(columns=12, out=5, tokens=200):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(tokens, 8, generator=generator, dtype=torch.float64)
    inputs = mixed @ torch.randn(8, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(out, columns, generator=generator, dtype=torch.float64)
    return inputs, weight, torch.tensor([0, 2, 3, 5, 7, 8, 10, 11])


def test_it_is_the_ridge_regression_of_old_outputs_on_kept_inputs():
    inputs, weight, kept = world()
    few = inputs[:, kept]
    ridge = RIDGE * (few * few).sum(dim=0).mean()
    # Independent: least squares with sqrt(ridge) * I stacked below the inputs.
    stacked = torch.cat([few, ridge.sqrt() * torch.eye(len(kept), dtype=torch.float64)])
    targets = torch.cat([inputs @ weight.T, torch.zeros(len(kept), len(weight)).double()])
    expected = torch.linalg.lstsq(stacked, targets).solution.T
    torch.testing.assert_close(refit(weight, inputs.T @ inputs, kept), expected)


def test_the_error_left_is_far_below_that_of_the_plain_cut():
    inputs, weight, kept = world()
    old = inputs @ weight.T
    plain = (old - inputs[:, kept] @ weight[:, kept].T).norm()
    solved = refit(weight, inputs.T @ inputs, kept)
    assert (old - inputs[:, kept] @ solved.T).norm() < 0.1 * plain


def test_keeping_every_column_changes_next_to_nothing_and_type_stays():
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    solved = refit(weight, inputs.T @ inputs, torch.arange(6))
    assert solved.dtype == torch.bfloat16
    torch.testing.assert_close(solved.float(), weight.float(), rtol=0.01, atol=0.01)


def grams_of(model, windows):
    """Layer -> X^T X of down_proj's inputs, gathered by hooks while the model reads."""
    grams = {}

    def gather(layer):
        def hook(_, inputs):
            flat = inputs[0].flatten(0, 1).double()
            grams[layer] = grams.get(layer, 0) + flat.T @ flat

        return hook

    layers = model.model.layers
    hooks = [x.mlp.down_proj.register_forward_pre_hook(gather(i)) for i, x in enumerate(layers)]
    with torch.no_grad():
        model(windows)
    for hook in hooks:
        hook.remove()
    return grams


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data/stories260K is not here")
def test_on_a_trained_model_it_wins_back_more_than_half_of_the_loss(tmp_path):
    text = (DATA / "text" / "tinystories.txt").read_text(encoding="utf-8")[:60_000]
    ids = tokenizers.load(STORIES).backend_tokenizer.encode(text, add_special_tokens=False).ids
    windows = torch.tensor(ids[: len(ids) // 256 * 256]).reshape(-1, 256)
    calibration, held_out = windows[:60], windows[60:84]

    def loss(model):
        with torch.no_grad():
            return model(held_out, labels=held_out).loss.item()

    model = AutoModelForCausalLM.from_pretrained(STORIES)
    prune(STORIES, tmp_path, ffn_ratio=0.25)
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path)
    losses = [loss(model), loss(pruned)]
    grams, checkpoint = grams_of(model, calibration), Checkpoint(STORIES)
    for layer, (old, new) in enumerate(zip(model.model.layers, pruned.model.layers, strict=True)):
        kept = strongest(score_layer(checkpoint, layer, magnitude, torch.Generator()), 128)
        assert torch.equal(old.mlp.gate_proj.weight[kept], new.mlp.gate_proj.weight)
        new.mlp.down_proj.weight.data = refit(old.mlp.down_proj.weight.data, grams[layer], kept)
    dense, cut = losses
    assert dense < loss(pruned) < dense + 0.5 * (cut - dense)
