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
from slimtune.models.folders import local_folder
from slimtune.report import model_card
from slimtune.training import distillation, estimates, lora, prechecks, sharding, teachers
from slimtune.training.checkpoints import to_resume
from slimtune.training.curve import Curve
from slimtune.training.dataset import Dataset
from slimtune.training.pipeline import done_with
from slimtune.training.timing import dry_run


def distil_student(
    config: Config,
    student: str,
    dataset: Dataset,
    text: Sequence[str],
    final: Path,
    checkpoints: Path,
) -> Curve:
    """Teach `student` what the teacher says and write it to `final`."""
    teacher = config.distillation.teacher_model
    models = {"student model": student, "teacher model": teacher}
    sections = ("distillation", "training", *["lora"] * (config.distillation.student == "lora"))
    same = prechecks.resume_conditions(config, sections, models, dataset.named)
    config = estimates.with_automatic_batch(
        config, estimates.student_run(config, student, dataset, text)
    )
    inputs = [student, teacher, *dataset.files]
    with stage_folder("knowledge_distillation", final, config, inputs=inputs) as stage:
        resume_from = to_resume(checkpoints, same) if config.options.resume else None
        taught = distillation.distil(
            config,
            student,
            dataset,
            text,
            checkpoints,
            resume_from=resume_from,
            conditions=same,
        )
        _write(taught, student, dataset, stage.folder)
        curve = taught.curve
        curve.write(stage.folder)
        learned = dataset.summary() | {"text_passages": len(text)}
        perplexities = distillation.perplexities(curve)
        # Of the student before: only the first process has the folder of the one after.
        parameters = Checkpoint(local_folder(student)).parameters
        stage.metrics.update(learned | curve.metrics() | perplexities, parameters=parameters)
        model_card.write_model_card(
            stage.folder, student, config, curve, learned, kind="distilled", more=perplexities
        )
    done_with(checkpoints)
    return curve


def ask_teacher(config: Config, dataset: Dataset, text: Sequence[str], final: Path) -> None:
    """Fill the teacher's cache as a stage of its own; `final` says where it is and what it took."""
    train, validation = distillation.samples_of(config, dataset, text)
    samples = [*train, *validation]
    inputs = [config.distillation.teacher_model, *dataset.files]
    with stage_folder("teacher_cache", final, config, inputs=inputs) as stage:
        started = time.monotonic()
        with teachers.first_process_first():
            folder = teachers.fill(config, samples)
        stage.metrics.update(
            cache=str(folder),
            samples=len(samples),
            tokens=sum(sample.supervised for sample in samples),
            bytes=sum(file.stat().st_size for file in folder.iterdir()),
            asking_seconds=round(time.monotonic() - started, 1),
        )


def plan_distillation(
    config: Config, student: str, dataset: Dataset, text: Sequence[str]
) -> dict[str, Any]:
    """The lines of --dry-run: the teacher and the student, each with the memory it needs."""
    train, validation = distillation.samples_of(config, dataset, text)
    run = estimates.student_run(config, student, dataset, text)
    lines = {"text passages": len(text)} | teachers.estimate_teacher(config, [*train, *validation])
    return lines | dry_run(config, student, run, dataset.train)


def _write(taught: distillation.Taught, student: str, dataset: Dataset, folder: Path) -> None:
    """An ordinary model in the type the student is stored in; an adapter is merged into it.

    The first process does it; the parts of a model that is shared out come from all of them.
    """
    source, model = local_folder(student), taught.model
    adapted = isinstance(model, PeftModel)
    if not first_process() and (adapted or sharding.weight_parts() == 1):
        return
    if adapted:
        adapter = folder / "adapter"
        lora.save_adapter(model, adapter, student, taught.start)
        merging.merge_adapter(source, adapter, folder)
        shutil.rmtree(adapter)
        tokenizers.save_tokenizer(dataset.tokenizer, folder, source)
    else:
        stored = Checkpoint(source).dtype(EMBEDDING)
        loading.save_model(model.to(stored), dataset.tokenizer, folder, source)
