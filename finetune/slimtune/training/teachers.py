"""Where the teacher's words come from: from its cache, or from itself beside the student.

Both say, for a batch and its supervised positions, what the teacher holds likely at any slice of
these positions, so that the loss never has more than one chunk of a vocabulary in memory.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from slimtune.config import Config
from slimtune.config.fields import ELSEWHERE
from slimtune.console import near, processes, size
from slimtune.models import loading, memory, tokenizers
from slimtune.models.compute import Compute, choose_device
from slimtune.models.family import FAMILIES
from slimtune.models.folders import local_folder, weights_identity
from slimtune.models.gguf_header import is_gguf
from slimtune.models.vocabulary_map import ids_digest
from slimtune.models.weights import Checkpoint
from slimtune.training import gguf_teacher, sharding, soundness, teacher_cache
from slimtune.training.attention import training_compute
from slimtune.training.batches import Sample
from slimtune.training.divergences import TeacherTopK
from slimtune.training.shared_vocabulary import ids_in_teacher, speak_as_student
from slimtune.training.teacher_cache import CachedTeacher, TopKOfRows, hidden_states

_log = logging.getLogger(__name__)


class Teacher(Protocol):
    def says(self, batch: dict[str, Any], positions: torch.Tensor) -> TopKOfRows:
        """The teacher's top-k at any slice of the supervised `positions` of a batch."""


class OnlineTeacher:
    """The teacher itself, in memory beside the student: every probability, nothing on disk."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        self._model, self._temperature = model, temperature

    def says(self, batch: dict[str, Any], positions: torch.Tensor) -> TopKOfRows:
        hidden, _ = hidden_states(self._model, batch)
        return lambda rows: self._probabilities(hidden[rows])

    @torch.no_grad()
    def _probabilities(self, hidden: torch.Tensor) -> TeacherTopK:
        logits = self._model.get_output_embeddings()(hidden).float()
        everything = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
        return TeacherTopK(everything, logits.div_(self._temperature).log_softmax(1))


def choose(config: Config, samples: Sequence[Sample], student: str) -> Teacher:
    """The teacher as distillation.mode says; `cached`: asked now for what no earlier run asked.

    It speaks of the tokens of `student`, under its ids; so do the samples.
    """
    settings = config.distillation
    if settings.mode == "online":
        ids = ids_in_teacher(settings.teacher_model, student)
        return OnlineTeacher(_sound_teacher(config, samples, student, ids), settings.temperature)
    with first_process_first(config):
        return CachedTeacher(fill(config, samples, student))


@contextmanager
def first_process_first(config: Config) -> Iterator[None]:
    """Of several processes the first goes in alone; the others find what it has made."""
    if processes() == 1:
        yield
        return
    device = choose_device(config.model.device).type
    with sharding.joined(device).main_process_first():
        yield


def fill(config: Config, samples: Sequence[Sample], student: str) -> Path:
    """The cache of what the teacher says about `samples`, of a student with the vocabulary of
    `student`; it is asked for what is missing."""
    settings = config.distillation
    ids = ids_in_teacher(settings.teacher_model, student)
    folder = cache_folder(config, samples, ids)
    if teacher_cache.is_complete(folder):
        _log.info("the teacher's answers are cached already: %s", near(folder))
        return folder
    if is_gguf(settings.teacher_model):
        gguf_teacher.write(folder, config, samples, ids)
        return folder
    top_k, temperature = settings.top_k, settings.temperature
    teacher_cache.write_cache(
        folder,
        lambda: _sound_teacher(config, samples, student, ids),
        samples,
        top_k=top_k,
        temperature=temperature,
    )
    return folder


def cache_folder(config: Config, samples: Sequence[Sample], ids: list[int] | None) -> Path:
    """Where the teacher's answers about `samples` lie, or will lie; `ids` are those that it has for
    the student's tokens, where they differ."""
    settings = config.distillation
    asked = weights_identity(settings.teacher_model)
    if settings.teacher_quantization != "none":
        asked += f" {settings.teacher_quantization}"
    if ids is not None:
        asked += f" {ids_digest(ids)}"
    return settings.cache_dir / teacher_cache.key(
        samples, asked, settings.top_k, settings.temperature
    )


def load_teacher(config: Config, ids: list[int] | None = None) -> PreTrainedModel:
    """The teacher, ready for padding-free batches; its layers come from their files one after
    another where it does not fit otherwise. `ids`: it is to speak of these tokens alone."""
    settings = config.distillation
    streamed = _streams(config, ids)
    if streamed:
        _log.info("teacher: %s", streamed)
    # Whole in every process: its decoder is asked without its head, and FSDP wants one root.
    compute = replace(
        training_compute(config.model, streamed=bool(streamed)),
        quantization=settings.teacher_quantization,
        shares=1,
    )
    return loading.load_model(settings.teacher_model, compute)


def _streams(config: Config, ids: list[int] | None) -> str:
    """Why the teacher leaves its layers in their files; empty where it does not.

    One that is rounded is held whole, and one of which only some tokens count is cut in memory.
    """
    shapes = Checkpoint(local_folder(config.distillation.teacher_model)).config
    rounded = config.distillation.teacher_quantization != "none"
    if rounded or ids is not None or processes() > 1 or shapes.get("model_type") not in FAMILIES:
        return ""
    compute = Compute.of(config.model).on(shapes)
    available = memory.available_memory(compute.device.type)
    whole = _memory(config)
    room = memory.streamed_bytes(memory.ModelShape.of(shapes), compute.dtype.itemsize)
    streamed = replace(whole, weights=room)
    if memory.fits(whole, available) or not memory.fits(streamed, available):
        return ""
    return (
        f"{memory.gigabytes(whole.total)} do not fit into {memory.gigabytes(available)}; its "
        "layers are read from their files one after another, in about "
        f"{memory.gigabytes(streamed.total)}"
    )


def _sound_teacher(
    config: Config, samples: Sequence[Sample], student: str, ids: list[int] | None
) -> PreTrainedModel:
    """The teacher, once it has shown on some of the samples that it can say anything at all."""
    teacher, name = load_teacher(config, ids), config.distillation.teacher_model
    if ids is not None:
        _log.info("teacher: asked of the %d tokens that the student has", len(ids))
        speak_as_student(teacher, ids)
    soundness.require_sound(teacher, tokenizers.load_tokenizer(student), samples, name)
    return teacher


def estimate_teacher(config: Config, samples: Sequence[Sample], student: str) -> dict[str, str]:
    """The lines of --dry-run about the teacher: its own memory, and on disk its answers, which are
    of the student's tokens."""
    settings = config.distillation
    if settings.teacher_model.startswith(ELSEWHERE):
        return {"teacher": f"{settings.teacher_model}, which writes answers to the rows' prompts"}
    if is_gguf(settings.teacher_model):
        needed = size(Path(settings.teacher_model).stat().st_size)
    else:
        needed = _memory(config)
    if settings.mode == "online":
        return {"teacher": "in memory beside the student; its weights are counted there"}
    found = {"teacher": f"about {needed}, alone and before the student"}
    if not is_gguf(settings.teacher_model) and settings.mode == "cached":
        streamed = _streams(config, ids_in_teacher(settings.teacher_model, student))
        found |= {"teacher's layers": streamed} if streamed else {}
    if settings.mode == "cached":
        vocabulary = Checkpoint(local_folder(student)).config["vocab_size"]
        taken = teacher_cache.cache_bytes(samples, settings.top_k, vocabulary)
        tokens = sum(sample.supervised for sample in samples)
        found["teacher's answers"] = f"{size(taken)} on disk for {tokens:,} tokens"
    return found


def _memory(config: Config) -> memory.MemoryEstimate:
    """What the teacher's folder needs while it is asked."""
    settings = config.distillation
    shapes = Checkpoint(local_folder(settings.teacher_model)).config
    compute = Compute.of(config.model).keeping(settings.teacher_quantization)
    return memory.estimate_memory(
        shapes,
        "inference",
        itemsize=compute.on(shapes).dtype.itemsize,
        quantization=settings.teacher_quantization,
        max_length=teacher_cache.TOKENS_PER_BATCH,
    )
