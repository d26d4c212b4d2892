"""Where the teacher's words come from: from its cache, or from itself beside the student.

Both say, for a batch and its supervised positions, what the teacher holds likely at any slice of
these positions, so that the loss never has more than one chunk of a vocabulary in memory.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from slimtune.config import Config
from slimtune.console import near, processes
from slimtune.models import loading
from slimtune.training import attention, teacher_cache
from slimtune.training.batches import Sample
from slimtune.training.conditions import identity
from slimtune.training.divergences import TeacherTopK
from slimtune.training.teacher_cache import CachedTeacher, Said, hidden_states

_log = logging.getLogger(__name__)

_A_DAY = timedelta(days=1)


class Teacher(Protocol):
    def says(self, batch: dict[str, Any], positions: torch.Tensor) -> Said:
        """The teacher's top-k at any slice of the supervised `positions` of a batch."""


class OnlineTeacher:
    """The teacher itself, in memory beside the student: every probability, nothing on disk."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        self._model, self._temperature = model, temperature

    def says(self, batch: dict[str, Any], positions: torch.Tensor) -> Said:
        hidden, _ = hidden_states(self._model, batch)
        return lambda rows: self._probabilities(hidden[rows])

    @torch.no_grad()
    def _probabilities(self, hidden: torch.Tensor) -> TeacherTopK:
        logits = self._model.get_output_embeddings()(hidden).float()
        everything = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
        return TeacherTopK(everything, logits.div_(self._temperature).log_softmax(1))


def choose(config: Config, samples: Sequence[Sample]) -> Teacher:
    """The teacher as distillation.mode says; `cached`: asked now for what no earlier run asked."""
    settings = config.distillation
    if settings.mode == "online":
        return OnlineTeacher(load(config), settings.temperature)
    top_k, temperature = settings.top_k, settings.temperature
    asked = identity(settings.teacher_model)
    folder = settings.cache_dir / teacher_cache.key(samples, asked, top_k, temperature)
    if processes() > 1:  # the first process asks the teacher, the others wait and read
        with PartialState(timeout=_A_DAY).main_process_first():
            _fill(folder, config, samples)
    else:
        _fill(folder, config, samples)
    return CachedTeacher(folder)


def _fill(folder: Path, config: Config, samples: Sequence[Sample]) -> None:
    if teacher_cache.whole(folder):
        _log.info("the teacher's answers are cached already: %s", near(folder))
        return
    top_k, temperature = config.distillation.top_k, config.distillation.temperature
    teacher_cache.write(folder, lambda: load(config), samples, top_k=top_k, temperature=temperature)


def load(config: Config) -> PreTrainedModel:
    """The teacher, ready for padding-free batches."""
    return loading.load(config.distillation.teacher_model, **compute(config))


def compute(config: Config) -> dict[str, Any]:
    """Where and in what numbers models of this run compute, as `loading.load` takes it."""
    device, dtype = config.model.device, config.model.dtype
    place, numbers = loading.choose_device(device), loading.choose_dtype(device, dtype)
    implementation = attention.register(place.type, numbers)
    return {"device": device, "dtype": dtype, "attn_implementation": implementation}
