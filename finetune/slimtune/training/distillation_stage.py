"""Distillation as the scripts run it: a student in, a finished folder with a better one out."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.console import first_process
from slimtune.models import loading, merging, tokenizers
from slimtune.models.checkpoints import EMBEDDING, Checkpoint
from slimtune.models.hub import resolve
from slimtune.training import (
    card,
    conditions,
    distillation,
    estimates,
    lora,
    sharding,
    teachers,
)
from slimtune.training.checkpoints import to_resume
from slimtune.training.curve import Curve
from slimtune.training.reading import Lessons
from slimtune.training.stages import done_with
from slimtune.training.timing import dry_run


def distil_student(
    config: Config,
    student: str,
    lessons: Lessons,
    text: Sequence[str],
    final: Path,
    checkpoints: Path,
) -> Curve:
    """Teach `student` what the teacher says and write it to `final`."""
    teacher = config.distillation.teacher_model
    models = {"student model": student, "teacher model": teacher}
    sections = ("distillation", "training", *["lora"] * (config.distillation.student == "lora"))
    same = conditions.conditions(config, sections, models, lessons.named)
    config = estimates.settled(config, estimates.student_run(config, student, lessons, text))
    inputs = [student, teacher, *lessons.files]
    with stage_folder("knowledge_distillation", final, config, inputs=inputs) as stage:
        resume_from = to_resume(checkpoints, same) if config.options.resume else None
        taught = distillation.distil(
            config,
            student,
            lessons,
            text,
            checkpoints,
            resume_from=resume_from,
            conditions=same,
        )
        _write(taught, student, lessons, stage.folder)
        curve = taught.curve
        curve.write(stage.folder)
        learned = lessons.summary() | {"text_passages": len(text)}
        perplexities = distillation.perplexities(curve)
        # Of the student before: only the first process has the folder of the one after.
        parameters = Checkpoint(resolve(student)).parameters
        stage.metrics.update(learned | curve.metrics() | perplexities, parameters=parameters)
        card.write(
            stage.folder, student, config, curve, learned, kind="distilled", more=perplexities
        )
    done_with(checkpoints)
    return curve


def ask_teacher(config: Config, lessons: Lessons, text: Sequence[str], final: Path) -> None:
    """Fill the teacher's cache as a stage of its own; `final` says where it is and what it took."""
    train, validation = distillation.samples_of(config, lessons, text)
    samples = [*train, *validation]
    inputs = [config.distillation.teacher_model, *lessons.files]
    with stage_folder("teacher_cache", final, config, inputs=inputs) as stage:
        started = time.monotonic()
        with teachers.in_turn():
            folder = teachers.fill(config, samples)
        stage.metrics.update(
            cache=str(folder),
            samples=len(samples),
            tokens=sum(sample.supervised for sample in samples),
            bytes=sum(file.stat().st_size for file in folder.iterdir()),
            asking_seconds=round(time.monotonic() - started, 1),
        )


def plan(config: Config, student: str, lessons: Lessons, text: Sequence[str]) -> dict[str, Any]:
    """The lines of --dry-run: the teacher and the student, each with the memory it needs."""
    train, validation = distillation.samples_of(config, lessons, text)
    run = estimates.student_run(config, student, lessons, text)
    lines = {"text passages": len(text)} | teachers.estimate(config, [*train, *validation])
    return lines | dry_run(config, student, run, lessons.train)


def _write(taught: distillation.Taught, student: str, lessons: Lessons, folder: Path) -> None:
    """An ordinary model in the type the student is stored in; an adapter is merged into it.

    The first process does it; the parts of a model that is shared out come from all of them.
    """
    source, model = resolve(student), taught.model
    adapted = isinstance(model, PeftModel)
    if not first_process() and (adapted or sharding.shares() == 1):
        return
    if adapted:
        adapter = folder / "adapter"
        lora.save(model, adapter, student, taught.start)
        merging.merge(source, adapter, folder)
        shutil.rmtree(adapter)
        tokenizers.save(lessons.tokenizer, folder, source)
    else:
        stored = Checkpoint(source).dtype(EMBEDDING)
        loading.save(model.to(stored), lessons.tokenizer, folder, source)
