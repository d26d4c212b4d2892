"""Distillation: the cache says what the teacher says, and the student comes nearer to it."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_samples
from torch.nn import functional as F

from slimtune.config import Training
from slimtune.console import InputError
from slimtune.prompts import IGNORED
from slimtune.training import teacher_cache
from slimtune.training.distillation import (
    DistillationTrainer,
    numbered,
    require_same_vocabulary,
)
from slimtune.training.fitting import fit


def teacher() -> torch.nn.Module:
    model = tiny_model("mistral").eval()
    with torch.no_grad():  # a teacher with opinions
        model.lm_head.weight.mul_(12)
    return model


def test_the_cache_holds_the_teachers_top_k(tmp_path: Path) -> None:
    model, samples = teacher(), tiny_samples(9)
    teacher_cache.write(tmp_path / "c", model, samples, top_k=4, temperature=2.0)
    cache = teacher_cache.TeacherCache(tmp_path / "c")
    said = cache.of([7, 2], torch.device("cpu"))
    expected = []
    for index in (7, 2):
        with torch.no_grad():
            logits = model(torch.tensor([samples[index].input_ids])).logits[0, :-1]
        learned = torch.tensor(samples[index].labels[1:]) != IGNORED
        expected.append((logits[learned] / 2).log_softmax(-1).topk(4))
    assert torch.equal(said.ids, torch.cat([top.indices for top in expected]))
    values = torch.cat([top.values for top in expected])
    torch.testing.assert_close(said.log_probabilities, values, rtol=2e-3, atol=2e-3)


def test_the_cache_key_changes_with_everything_it_depends_on() -> None:
    samples = tiny_samples(3)
    keys = {
        teacher_cache.key(samples, "t", 4, 1.0),
        teacher_cache.key(samples[:2], "t", 4, 1.0),
        teacher_cache.key(samples, "u", 4, 1.0),
        teacher_cache.key(samples, "t", 5, 1.0),
        teacher_cache.key(samples, "t", 4, 2.0),
    }
    assert len(keys) == 5
    assert teacher_cache.key(tiny_samples(3), "t", 4, 1.0) in keys


def test_the_student_comes_nearer_to_the_teacher(tmp_path: Path) -> None:
    samples, validation = numbered(tiny_samples(40), tiny_samples(8, seed=3))
    teacher_cache.write(
        tmp_path / "c", model := teacher(), [*samples, *validation], top_k=16, temperature=1.0
    )
    student = tiny_model()

    def divergence() -> float:
        ids = torch.tensor([samples[0].input_ids])
        with torch.no_grad():
            p, q = model(ids).logits.log_softmax(-1), student(ids).logits.log_softmax(-1)
        return F.kl_div(q, p, log_target=True, reduction="sum").item()

    before = divergence()
    curve = fit(
        student,
        samples,
        validation,
        Training(epochs=8, batch_size=8, learning_rate=1e-2),
        tmp_path / "checkpoints",
        trainer_class=DistillationTrainer,
        cache=teacher_cache.TeacherCache(tmp_path / "c"),
        alpha=1.0,
        temperature=1.0,
    )
    assert divergence() < 0.5 * before
    logged = next(entry for entry in curve.history if "kd" in entry)
    assert {"loss", "kd", "ce"} <= logged.keys()
    assert any("eval_kd" in entry for entry in curve.history)


class _Vocabulary:
    def __init__(self, **ids: int) -> None:
        self.ids = ids

    def get_vocab(self) -> dict[str, int]:
        return self.ids


def test_other_vocabularies_are_refused_by_their_ids_not_their_size() -> None:
    require_same_vocabulary(_Vocabulary(a=0, b=1), _Vocabulary(a=0, b=1))
    with pytest.raises(InputError, match="2 tokens differ"):
        require_same_vocabulary(_Vocabulary(a=0, b=1), _Vocabulary(a=1, b=0))
    with pytest.raises(InputError, match="lacks"):
        require_same_vocabulary(_Vocabulary(a=0, b=1), _Vocabulary(a=0))
