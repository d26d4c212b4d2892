"""What a student that learns layer by layer is measured by, and how it comes last in a long run."""

import pytest
import torch
from tiny_cuts import build, words
from torch.nn.functional import kl_div

from slimtune.config import Config
from slimtune.inference import stack
from slimtune.inference.stack import Stack, divergences
from slimtune.models import weights
from slimtune.quantised import last_stage


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "tied"])
def test_the_divergence_is_torchs_own(tmp_path, family, monkeypatch) -> None:
    model = build(tmp_path / "model", family)
    other = build(tmp_path / "other", family)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    other.save_pretrained(tmp_path / "other", max_shard_size="60KB")
    (batch, *_), states, logits = words(), [], []
    for one in (model, other):
        found = one(batch.ids, output_hidden_states=True)
        logits.append(found.logits[batch.real].double())
        hook = one.model.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        one(batch.ids)
        hook.remove()
    p, q = (one.log_softmax(-1) for one in logits)
    expected = kl_div(q, p, log_target=True, reduction="none").sum(-1)
    monkeypatch.setattr(weights, "CHUNK_BYTES", 7 * 64 * 4)  # rows of the vocabulary at a time
    monkeypatch.setattr(stack, "_TOKENS", 5)
    stacks = [Stack.of(tmp_path / name) for name in ("model", "other")]
    found = divergences(*stacks, [one[batch.real] for one in states])
    assert expected.mean() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def settings(**given: object) -> Config:
    config = Config()
    distillation = config.distillation.model_copy(update=given)
    return config.model_copy(update={"distillation": distillation})


def test_in_a_long_run_the_layers_of_the_last_training_alone_learn_one_by_one() -> None:
    given = {"quantised_student": "Q4_K_M", "student": "layers", "temperature": 2.0}
    before, last = (one.distillation for one in last_stage.parted(settings(**given)))
    assert (before.student, before.quantised_student, before.temperature) == ("full", None, 2.0)
    assert (last.student, last.quantised_student, last.temperature) == ("layers", "Q4_K_M", 1.0)
    before, last = (one.distillation for one in last_stage.parted(settings(student="layers")))
    assert before.student == "layers"  # which is refused: nothing is rounded
