"""Distillation as the scripts run it: the teacher asked as a stage, and a student as a `Method`."""

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from slimtune.artifacts import stage_folder
from slimtune.config import Config
from slimtune.console import first_process
from slimtune.models import loading, merging, tokenizers
from slimtune.models.folders import local_folder
from slimtune.models.weights import Checkpoint
from slimtune.training import (
    distillation,
    estimates,
    initialisation,
    lora,
    pipeline,
    teacher_places,
    teachers,
)
from slimtune.training.attention import training_compute
from slimtune.training.curve import Curve
from slimtune.training.dataset import Dataset
from slimtune.training.lora import Learner
from slimtune.training.timing import dry_run


def student(config: Config, model: str, text: Sequence[str]) -> pipeline.Method:
    """The student `model` taught what the teacher says of the rows and of the passages `text`.

    All its weights learn, or an adapter that is merged into it: an ordinary model in both cases.
    """
    teacher, adapted = config.distillation.teacher_model, config.distillation.student == "lora"
    sections = ("distillation", "training")
    return pipeline.Method(
        stage="knowledge_distillation",
        kind="distilled",
        models={"student model": model, "teacher model": teacher},
        sections=(*sections, "lora") if adapted else sections,
        plan=lambda config, dataset: estimates.student_run(config, model, dataset, text),
        lesson=partial(_lesson, model, text),
        load=partial(_load_adapted if adapted else _load_whole, model),
        judge=_judge,
        save=partial(_save_merged if adapted else pipeline.save_whole, model),
        # Of the student before: only the first process has the folder of the one after.
        count=lambda _: {"parameters": Checkpoint(local_folder(model)).parameters},
    )


def ask_teacher(
    config: Config, student: str, dataset: Dataset, text: Sequence[str], final: Path
) -> None:
    """Fill the teacher's cache as a stage of its own, for a student with the vocabulary of
    `student`; `final` says where it is and what it took."""
    train, validation = distillation.samples_of(config, dataset, text)
    samples = [*train, *validation]
    inputs = [config.distillation.teacher_model, *dataset.named.values()]
    with stage_folder("teacher_cache", final, config, inputs=inputs) as stage:
        started = time.monotonic()
        with teachers.first_process_first(config):
            folder = teachers.fill(config, samples, student)
        stage.metrics.update(
            teacher_places.facts(config),
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
    asked = teachers.estimate_teacher(config, [*train, *validation], student)
    return {"text passages": len(text)} | asked | dry_run(config, student, run, dataset.train)


def figures(config: Config, student: str, curve: Curve) -> dict[str, str]:
    """The script's last line about a student."""
    return {"perplexity": " -> ".join(map(str, distillation.perplexities(curve).values()))}


def _lesson(model: str, text: Sequence[str], config: Config, dataset: Dataset) -> pipeline.Lesson:
    distillation.require_teachable(config, model)
    train, validation = distillation.samples_of(config, dataset, text)
    options = distillation.fit_options(config, model, [*train, *validation])
    told = {"text_passages": len(text)} | teacher_places.facts(config)
    return pipeline.Lesson(train, validation, options, told)


def _load_whole(model: str, config: Config) -> Learner:
    compute = training_compute(config.model).learning_whole()
    return Learner(loading.load_model(model, compute).float())


def _load_adapted(model: str, config: Config) -> Learner:
    compute = training_compute(config.model).keeping("none")  # what is merged must be exact
    loaded = loading.load_model(model, compute)
    adapted = lora.attach(loaded, config.lora, seed=config.training.seed)
    return Learner(adapted, initialisation.start_of(adapted, config.lora))


def _judge(curve: Curve, checkpoints: Path) -> pipeline.Figures:
    distillation.require_better(curve, checkpoints)
    return distillation.perplexities(curve)


def _save_merged(
    model: str, config: Config, learner: Learner, dataset: Dataset, folder: Path
) -> pipeline.Proof:
    """The adapter merged into the student: it is whole in each process, and the first writes."""
    if first_process():
        source, adapter = local_folder(model), folder / "adapter"
        lora.save_adapter(learner.model, adapter, model, learner.start)
        merging.merge_adapter(source, adapter, folder)
        shutil.rmtree(adapter)
        tokenizers.save_tokenizer(dataset.tokenizer, folder, source)
    return partial(pipeline.changed, model, folder)
