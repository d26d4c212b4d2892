"""The student's side of distillation: a loss of what the teacher said and what the rows say.

loss = α · T² · D(teacher, student) + (1 - α) · cross entropy, at supervised positions only.
"""

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slimtune.artifacts.files import text_lines
from slimtune.config import Config, Distillation
from slimtune.config.fields import ELSEWHERE
from slimtune.errors import QualityError, SettingsError
from slimtune.models.folders import local_folder
from slimtune.models.gguf_header import is_gguf
from slimtune.models.weights import Checkpoint
from slimtune.settings.flags import named
from slimtune.training import losses, sharding, teachers
from slimtune.training.batches import Sample, encode_text
from slimtune.training.curve import Curve
from slimtune.training.dataset import Dataset
from slimtune.training.divergences import DIVERGENCES
from slimtune.training.effect import NoEffect
from slimtune.training.shared_vocabulary import ids_in_teacher
from slimtune.training.trainer import SlimTrainer

_log = logging.getLogger(__name__)

_MOST = 700.0  # nats a token; beyond it exp overflows, and the model is broken anyway
_KEPT_ASIDE = 20  # without validation rows every 20th training row judges instead


class DistillationTrainer(SlimTrainer):
    """SlimTrainer whose targets come from the rows and from a teacher."""

    part_names = ("loss", "kd", "ce")

    def __init__(
        self, *args: Any, teacher: teachers.Teacher, distillation: Distillation, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        self.mixed = partial(
            losses.distillation,
            divergence=DIVERGENCES[distillation.divergence],
            alpha=distillation.alpha,
            temperature=distillation.temperature,
        )

    def let_go(self) -> None:
        super().let_go()
        self.teacher = None

    def loss_of(self, batch: dict[str, Any], positions: torch.Tensor) -> losses.Loss:
        targets = batch["labels"][0, positions + 1]
        said = self.teacher.says(batch, positions)
        return lambda logits, rows: self.mixed(logits, targets[rows], said(rows))


def numbered_samples(*groups: Sequence[Sample]) -> list[list[Sample]]:
    """The groups with one running index over all their samples: their places in one cache."""
    start, result = 0, []
    for group in groups:
        result.append([replace(sample, index=start + i) for i, sample in enumerate(group)])
        start += len(group)
    return result


def require_teachable(config: Config, student: str) -> None:
    """InputError unless the teacher is a whole model, with the student's vocabulary or more where
    the two are compared token by token, and the student one that can learn; SettingsError for
    choices that a shared out student does not allow, and for layers that learn one by one where
    nothing is rounded."""
    _require_rounded(config.distillation)
    sharding.require_supported(config, whole=config.distillation.student == "full")
    teacher = config.distillation.teacher_model
    if not (teacher.startswith(ELSEWHERE) or is_gguf(teacher)):  # `teacher_places` looked at those
        local_folder(teacher)
        if config.distillation.mode != "sequence":
            ids_in_teacher(teacher, student)
    learner = Checkpoint(local_folder(student))
    learner.require_full_precision("train a student")
    if "sparsity" in learner.config and config.distillation.student != "lora":
        _log.warning(
            "caution: the student's zeros come back to life when all weights learn; --student lora "
            "keeps them"
        )


def _require_rounded(settings: Distillation) -> None:
    if settings.student == "layers" and settings.quantised_student is None:
        raise SettingsError(
            "distillation.student: layers of a student that is not quantised",
            "a layer learns to give through the types of a file what it gave without",
            "add --quantised-student Q4_K_M, or use --student full or --student lora",
        )


def samples_of(
    config: Config, dataset: Dataset, text: Sequence[str]
) -> tuple[list[Sample], list[Sample]]:
    """What is learned from and what judges, numbered as the teacher's cache numbers them."""
    rows, judges = kept_aside(dataset)
    passages = encode_text(text, dataset.tokenizer, config.training.max_length)
    train, validation = numbered_samples([*rows, *passages], judges)
    return train, validation


def fit_options(config: Config, student: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """What `fit` is told of `student`: epochs, rates, and the teacher that speaks of `samples`.

    A cached teacher is loaded here, alone, and only for answers that are not cached. In mode
    `sequence` the rows hold the teacher's answers already, and nothing else is asked of it.
    """
    settings = config.distillation
    options: dict[str, Any] = {
        "epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "section": "distillation",
    }
    if settings.mode != "sequence":
        options |= {"trainer_class": DistillationTrainer, "distillation": settings}
        options["teacher"] = teachers.choose(config, samples, student)
    if settings.student == "lora":
        options["loraplus_ratio"] = config.lora.loraplus_ratio
    return options


def kept_aside(dataset: Dataset) -> tuple[list[Sample], list[Sample]]:
    """Rows to learn from and rows to judge by: a student that got worse must be noticed."""
    if dataset.validation or len(dataset.train) < 2:
        return dataset.train, dataset.validation
    judges = dataset.train[::_KEPT_ASIDE]
    _log.info("no validation rows: %d training rows are kept aside to judge by", len(judges))
    return [row for i, row in enumerate(dataset.train) if i % _KEPT_ASIDE], judges


def passages_of(config: Config) -> list[str]:
    """text_passages lines spread evenly over text_data; none without a file or a count."""
    file, count = config.distillation.text_data, config.distillation.text_passages
    if file is None or not count:
        return []
    cure = "run `python finetune/create_sample_data.py`, name a text file, or set it to null"
    lines = text_lines(file, "distillation.text_data", cure)
    step = max(1, len(lines) // count)
    return lines[::step][:count]


def perplexities(curve: Curve) -> dict[str, float]:
    """exp(cross entropy) on the rows kept aside, before distillation and of the student kept.

    The student kept is the one with the least loss, of which cross entropy is only a part.
    """
    validations = [entry for entry in curve.history if "eval_loss" in entry]
    if not validations:
        return {}
    best = min(validations, key=lambda entry: entry["eval_loss"])
    found = {"perplexity_before": validations[0], "perplexity_after": best}
    return {
        name: round(math.exp(min(entry.get("eval_ce", entry["eval_loss"]), _MOST)), 3)
        for name, entry in found.items()
    }


def require_better(curve: Curve, checkpoints: Path) -> None:
    """QualityError for a student that got worse on the rows kept aside, NoEffect for the same."""
    if not curve.validation:
        return
    (_, before), *rest = curve.validation
    best = min(loss for _, loss in rest)
    if best == before:
        raise NoEffect("student", f"its validation loss stayed at {before:.4f} to the last digit")
    if best > before:
        shutil.rmtree(checkpoints, ignore_errors=True)  # it came to its end: nothing to go on with
        raise QualityError(
            f"distillation made the student worse: validation loss {before:.4f} -> {best:.4f}",
            "the teacher's lesson did not help on rows kept aside",
            f"lower {named('distillation.learning_rate')}, raise {named('distillation.epochs')}, "
            "or choose a teacher that knows these rows",
        )
