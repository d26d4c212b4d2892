"""Distillation: the cache says what the teacher says, and the student comes nearer to it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import tiny_model, tiny_samples
from torch.nn import functional as F

from slimtune.config import Distillation, Training
from slimtune.errors import InputError, ResourceError
from slimtune.prompts import IGNORED
from slimtune.training import teacher_cache
from slimtune.training.batches import Sample, collate
from slimtune.training.dataset import Dataset
from slimtune.training.distillation import (
    DistillationTrainer,
    kept_aside,
    numbered_samples,
)
from slimtune.training.divergences import DIVERGENCES, TeacherTopK
from slimtune.training.fitting import fit
from slimtune.training.teacher_cache import CachedTeacher
from slimtune.training.teachers import OnlineTeacher, Teacher


def teacher() -> torch.nn.Module:
    model = tiny_model("mistral").eval()
    with torch.no_grad():  # a teacher with opinions
        model.lm_head.weight.mul_(12)
    return model


@pytest.fixture
def cached(tmp_path: Path):
    """Fills a cache from the teacher, with parts of 4 samples; the folder and its samples."""

    def fill(samples: list[Sample], model=None, **options) -> Path:
        folder = tmp_path / teacher_cache.key(samples, "t", 4, 1.0)
        chosen = {"top_k": 4, "temperature": 1.0} | options
        teacher_cache.write_cache(folder, lambda: model or teacher(), samples, **chosen)
        return folder

    return fill


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(teacher_cache, "SAMPLES_A_PART", 4)


def said_by(teacher: Teacher, samples: list[Sample]) -> TeacherTopK:
    batch = collate(samples)
    positions = (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(1)
    return teacher.says(batch, positions)(slice(None))


def test_the_cache_holds_the_teachers_top_k(cached) -> None:
    model, samples = teacher(), tiny_samples(9)
    said = said_by(CachedTeacher(cached(samples, model, temperature=2.0)), [samples[7], samples[2]])
    expected = []
    for index in (7, 2):
        with torch.no_grad():
            logits = model(torch.tensor([samples[index].input_ids])).logits[0, :-1]
        learned = torch.tensor(samples[index].labels[1:]) != IGNORED
        expected.append((logits[learned] / 2).log_softmax(-1).topk(4))
    assert torch.equal(said.ids, torch.cat([top.indices for top in expected]))
    values = torch.cat([top.values for top in expected])
    torch.testing.assert_close(said.log_probabilities, values, rtol=2e-3, atol=2e-3)


def test_the_teacher_online_says_every_probability(cached) -> None:
    model, samples = teacher(), tiny_samples(9)
    chosen = [samples[7], samples[2]]
    online = said_by(OnlineTeacher(model, 1.0), chosen)
    assert online.ids.shape[1] == model.config.vocab_size
    torch.testing.assert_close(online.log_probabilities.exp().sum(1), torch.ones(len(online.ids)))
    top = online.log_probabilities.topk(4)
    stored = said_by(CachedTeacher(cached(samples, model)), chosen)
    assert torch.equal(top.indices, stored.ids)


def test_a_stopped_first_pass_goes_on_where_it_was(cached) -> None:
    samples = tiny_samples(10)
    folder = cached(samples)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(before) == 4  # parts of 4, 4 and 2 samples, and the manifest
    (folder / "cache.json").unlink()
    cut = teacher_cache.part_file(folder, 1)
    cut.write_bytes(cut.read_bytes()[:-10])
    kept = teacher_cache.part_file(folder, 0).stat().st_mtime_ns
    assert not teacher_cache.is_complete(folder)
    cached(samples)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert teacher_cache.part_file(folder, 0).stat().st_mtime_ns == kept


def test_a_whole_cache_does_not_load_the_teacher(tmp_path: Path, cached) -> None:
    samples = tiny_samples(5)
    folder = cached(samples)
    assert teacher_cache.is_complete(folder)
    teacher_cache.write_cache(folder, pytest.fail, samples, top_k=4, temperature=1.0)


def test_no_room_for_the_answers_is_said_before_the_teacher_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(ResourceError, match="needed, 10 B free"):
        teacher_cache.write_cache(
            tmp_path / "key", pytest.fail, tiny_samples(5), top_k=4, temperature=1.0
        )


def test_a_cache_that_changed_or_belongs_to_other_rows_is_refused(cached) -> None:
    folder = cached(tiny_samples(5))
    moved = folder.rename(folder.with_name("0123456789abcdef"))
    with pytest.raises(InputError, match="other rows or another teacher"):
        teacher_cache.is_complete(moved)
    part = teacher_cache.part_file(moved, 0)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match="has changed"):
        teacher_cache.is_complete(moved)


@pytest.mark.parametrize(
    "content",
    ['{"key": "k", "sha256": {"../outside": "0"}}', '{"key": "k", "sha256": []}', "[]", "{"],
)
def test_a_cache_whose_manifest_leads_elsewhere_is_refused(cached, content) -> None:
    folder = cached(tiny_samples(5))
    (folder.parent / "outside").write_bytes(b"not to be read")
    (folder / "cache.json").write_text(content)
    with pytest.raises(InputError, match="cannot be trusted") as refused:
        teacher_cache.is_complete(folder)
    assert "has changed" not in refused.value.why


def test_a_cache_is_not_written_through_a_link(tmp_path, cached) -> None:
    (tmp_path / "victim").write_text("mine")
    folder = cached(tiny_samples(5))
    part = teacher_cache.part_file(folder, 0)
    part.unlink()
    (folder / f"{part.name}.{os.getpid()}.partial").symlink_to(tmp_path / "victim")
    cached(tiny_samples(5))
    assert (tmp_path / "victim").read_text() == "mine" and part.is_file()


def test_ids_take_two_bytes_where_the_vocabulary_allows(cached) -> None:
    samples = tiny_samples(5)
    with safe_open(teacher_cache.part_file(cached(samples), 0), framework="pt") as handle:
        ids, logs = handle.get_tensor("ids"), handle.get_tensor("log_probabilities")
    assert (ids.dtype, logs.dtype) == (torch.uint16, torch.float16)
    supervised = sum(sample.supervised for sample in samples)
    assert teacher_cache.cache_bytes(samples, 4, 512) == supervised * 4 * 4
    assert teacher_cache.cache_bytes(samples, 4, 100_000) == supervised * 4 * 6


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


def teacher_for(mode: str, model, samples: list[Sample], cached) -> Teacher:
    if mode == "online":
        return OnlineTeacher(model, 1.0)
    return CachedTeacher(cached(samples, model, top_k=16))


@pytest.mark.parametrize(
    ("mode", "divergence_name"),
    [("online", "forward_kl"), *(("cached", name) for name in DIVERGENCES)],
)
def test_the_student_comes_nearer_to_the_teacher(
    mode: str, divergence_name: str, tmp_path: Path, cached
) -> None:
    samples, validation = numbered_samples(tiny_samples(40), tiny_samples(8, seed=3))
    model = teacher()
    told = teacher_for(mode, model, [*samples, *validation], cached)
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
        teacher=told,
        distillation=Distillation(alpha=1.0, divergence=divergence_name),
    )
    assert divergence() < 0.5 * before
    logged = next(entry for entry in curve.history if "kd" in entry)
    assert {"loss", "kd", "ce"} <= logged.keys()
    assert any("eval_kd" in entry for entry in curve.history)


def test_without_validation_rows_some_training_rows_judge() -> None:
    rows = tiny_samples(41)
    learned, judges = kept_aside(Dataset(None, rows, [], []))
    assert judges == [rows[0], rows[20], rows[40]]
    assert len(learned) == 38 and not any(judge in learned for judge in judges)
    assert kept_aside(Dataset(None, rows, rows[:2], [])) == (rows, rows[:2])
