"""The student's side of distillation: a loss of what the teacher said and what the rows say.

loss = α · T² · KL(teacher ‖ student) + (1 - α) · cross entropy, at supervised positions only.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slimtune.config import Distillation, Training
from slimtune.console import InputError, QualityError, near, processes
from slimtune.models import loading, tokenizers
from slimtune.models.checkpoints import EMBEDDING, Checkpoint
from slimtune.models.hub import resolve
from slimtune.training import losses, teacher_cache
from slimtune.training.attention import register
from slimtune.training.batches import Sample, encode_text
from slimtune.training.conditions import identity
from slimtune.training.curve import Curve
from slimtune.training.fitting import fit
from slimtune.training.reading import Lessons
from slimtune.training.teacher_cache import TeacherCache
from slimtune.training.trainer import SlimTrainer

_log = logging.getLogger(__name__)

_A_DAY = timedelta(days=1)


class DistillationTrainer(SlimTrainer):
    """SlimTrainer whose targets come from the rows and from the teacher's cached top-k."""

    part_names = ("loss", "kd", "ce")

    def __init__(
        self, *args: Any, cache: TeacherCache, alpha: float, temperature: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.cache, self.alpha, self.temperature = cache, alpha, temperature

    def loss_of(self, batch: dict[str, Any], positions: torch.Tensor) -> losses.Loss:
        targets = batch["labels"][0, positions + 1]
        teacher = self.cache.of(batch["indices"], targets.device)
        mixed = partial(losses.distillation, alpha=self.alpha, temperature=self.temperature)

        def loss(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            said = losses.TeacherTopK(teacher.ids[rows], teacher.log_probabilities[rows])
            return mixed(logits, targets[rows], said)

        return loss


def numbered(*groups: Sequence[Sample]) -> list[list[Sample]]:
    """The groups with one running index over all their samples: their places in one cache."""
    start, result = 0, []
    for group in groups:
        result.append([replace(sample, index=start + i) for i, sample in enumerate(group)])
        start += len(group)
    return result


def require_teacher(teacher: str, lessons: Lessons) -> None:
    """InputError unless the teacher is a whole model with the student's vocabulary."""
    resolve(teacher)
    require_same_vocabulary(tokenizers.load(teacher), lessons.tokenizer)


def require_same_vocabulary(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> None:
    """InputError unless both give every token the same id: else the lesson would be garbage."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = [token for token, i in ours.items() if theirs.get(token) != i]
    if different or len(ours) != len(theirs):
        example = next(iter(different), "the teacher has tokens that the student lacks")
        raise InputError(
            f"teacher and student speak different vocabularies ({len(different)} tokens differ)",
            f"for example {example!r}; the teacher's probabilities would land on other tokens",
            "choose a teacher with the student's tokenizer; the unpruned model is one",
        )


def distil(
    teacher: str,
    student: str,
    lessons: Lessons,
    text: Sequence[str],
    settings: Distillation,
    training: Training,
    *,
    checkpoints: Path,
    device: str,
    dtype: str,
    resume_from: Path | None = None,
    conditions: Mapping[str, str] | None = None,
) -> tuple[PreTrainedModel, Curve]:
    """Teach the student what the teacher says about the rows and the plain text.

    The teacher is loaded first, alone, and only where its answers are not cached.
    Returns the trained student in the type it is stored in. Raises InputError for different
    vocabularies, QualityError for a student that got worse.
    """
    require_teacher(teacher, lessons)
    passages = encode_text(text, lessons.tokenizer, training.max_length)
    train, validation = numbered([*lessons.train, *passages], lessons.validation)
    compute = {"device": device, "dtype": dtype, "attn_implementation": register()}
    cache = _cached(teacher, [*train, *validation], settings, compute)
    model = loading.load(student, **compute)
    stored = Checkpoint(resolve(student)).dtype(EMBEDDING)
    curve = fit(
        model.float(),
        train,
        validation,
        training,
        checkpoints,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        resume_from=resume_from,
        conditions=conditions,
        trainer_class=DistillationTrainer,
        cache=TeacherCache(cache),
        alpha=settings.alpha,
        temperature=settings.temperature,
    )
    _require_better(curve, checkpoints)
    return model.to(stored), curve


def passages_of(file: Path | None, count: int) -> list[str]:
    """`count` lines spread evenly over a text file; none without a file or a count."""
    if file is None or not count:
        return []
    if not file.is_file():
        raise InputError(
            f"{near(file)}: not there",
            "distillation.text_data names it",
            "run `python finetune/create_sample_data.py`, name a text file, or set it to null",
        )
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    step = max(1, len(lines) // count)
    return lines[::step][:count]


def _cached(
    teacher: str,
    samples: Sequence[Sample],
    settings: Distillation,
    compute: dict[str, str],
) -> Path:
    key = teacher_cache.key(samples, identity(teacher), settings.top_k, settings.temperature)
    file = settings.cache_dir / f"{key}.safetensors"
    if processes() > 1:  # the first process asks the teacher, the others wait and read
        with PartialState(timeout=_A_DAY).main_process_first():
            return _ask(teacher, samples, settings, compute, file)
    return _ask(teacher, samples, settings, compute, file)


def _ask(
    teacher: str,
    samples: Sequence[Sample],
    settings: Distillation,
    compute: dict[str, str],
    file: Path,
) -> Path:
    if file.is_file():
        _log.info("the teacher's answers are cached already: %s", near(file))
        return file
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    model = loading.load(teacher, **compute)
    partial = file.with_suffix(".partial")
    teacher_cache.write(
        partial, model, samples, top_k=settings.top_k, temperature=settings.temperature
    )
    os.replace(partial, file)
    return file


def _require_better(curve: Curve, checkpoints: Path) -> None:
    if not curve.validation:
        return
    (_, before), *rest = curve.validation
    best = min(loss for _, loss in rest)
    if best >= before:
        shutil.rmtree(checkpoints, ignore_errors=True)  # it came to its end: nothing to go on with
        raise QualityError(
            f"distillation made the student worse: validation loss {before:.4f} -> {best:.4f}",
            "the teacher's lesson did not help on rows kept aside",
            "lower --learning-rate, raise --epochs, or choose a teacher that knows these rows",
        )
