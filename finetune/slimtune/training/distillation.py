"""The student's side of distillation: a loss of what the teacher said and what the rows say.

loss = α · T² · KL(teacher ‖ student) + (1 - α) · cross entropy, at supervised positions only.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from slimtune.console import InputError
from slimtune.training import losses
from slimtune.training.batches import Sample
from slimtune.training.teacher_cache import TeacherCache
from slimtune.training.trainer import SlimTrainer


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
