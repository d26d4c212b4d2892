"""A GGUF as teacher: the file as it is, read by llama.cpp alone, fills the same cache as a folder.

Nothing is unpacked: a Q8_0 of 7B takes 7.2 GB where 16 bits need 13.5. What it holds likely is read
in llama.cpp's own pass over the rows, under its own ids and told under the student's: of a student
that was trimmed, as `shared_vocabulary` has it. Every row that was read waits in a file of its own
until the cache is whole.
"""

import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from slimtune.config import Config
from slimtune.console import near, size
from slimtune.errors import InputError
from slimtune.inference import guessing
from slimtune.inference.answers import AnswerLoss
from slimtune.inference.engines import Engine, open_engine
from slimtune.inference.questions import Candidate
from slimtune.inference.top_choices import CHOICE_BYTES, TopChoices
from slimtune.machine.disks import require_space
from slimtune.models.folders import file_sum
from slimtune.prompts import IGNORED, Encoded
from slimtune.training import gguf_vocabulary, teacher_cache
from slimtune.training.batches import Sample
from slimtune.training.divergences import TeacherTopK

_log = logging.getLogger(__name__)

_SOUND_ROWS = 8  # of all, to find out whether it is a model at all


def write(
    folder: Path, config: Config, samples: Sequence[Sample], ids: Sequence[int] | None
) -> None:
    """Fill the cache `folder` with what the file says of `samples`; what is there already stays.

    `ids` are those that it has for the student's tokens, where they differ.
    """
    file, settings = Path(config.distillation.teacher_model), config.distillation
    rows = folder.with_name(f"{folder.name}.rows")
    tokens = range(gguf_vocabulary.tokens_in(file)) if ids is None else ids
    plan = TopChoices(rows, settings.top_k, settings.temperature, len(tokens), ids)
    teacher_cache.write_cache(
        folder,
        lambda: _read(plan, config, samples),
        samples,
        top_k=settings.top_k,
        temperature=settings.temperature,
        ask=_said,
    )
    shutil.rmtree(rows, ignore_errors=True)


def _read(plan: TopChoices, config: Config, samples: Sequence[Sample]) -> TopChoices:
    """Have llama.cpp read every sample that no earlier run has read."""
    file = Path(config.distillation.teacher_model)
    if plan.ids is not None:
        _log.info("teacher: asked of the %d tokens that the student has", plan.tokens)
    examples = [_example(sample, plan.ids) for sample in samples]
    known = plan.known(range(len(samples)))
    left = sum(one.supervised for place, one in enumerate(samples) if place not in known)
    require_space(plan.folder, left * plan.choices * CHOICE_BYTES, "what the teacher says waits")
    _log.info(
        "teacher: llama.cpp reads %s (%s) on the processor, %d of %d rows and texts are there",
        *(near(file), size(file.stat().st_size), len(known), len(samples)),
    )
    longest = max(len(sample.input_ids) for sample in samples)
    with closing(open_engine(Candidate("teacher", str(file)), config.model, longest)) as engine:
        _require_sound(engine, examples, file)
        for row, loss in engine.losses(examples, known, plan):
            _require_finite(loss, file, row)
    return plan


def _said(
    plan: TopChoices, samples: Sequence[Sample], top_k: int, temperature: float
) -> tuple[TeacherTopK, int]:
    """What was read of some samples, one after another, and of how many tokens it speaks."""
    rows = [plan.read(sample.index) for sample in samples]
    ids, logs = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*rows, strict=True))
    return TeacherTopK(ids, logs), plan.tokens


def _example(sample: Sample, ids: Sequence[int] | None) -> Encoded:
    """Nothing predicts the first token of a sample. `ids` are the file's, where they differ."""
    read, learned = sample.input_ids, [IGNORED, *sample.labels[1:]]
    if ids is not None:
        read = [ids[token] for token in read]
        learned = [token if token == IGNORED else ids[token] for token in learned]
    return {"input_ids": read, "labels": learned}


def _require_sound(engine: Engine, examples: Sequence[Encoded], file: Path) -> None:
    """A caution, or InputError, where the file is worse than guessing, as `soundness` has it."""
    chosen = examples[:: max(1, len(examples) // _SOUND_ROWS)][:_SOUND_ROWS]
    plain = guessing.examples(engine.tokenizer)
    guessing.judge(
        file,
        _loss([loss for _, loss in engine.losses(chosen)]),
        lambda: min(_loss([loss]) for _, loss in engine.losses(plain)),
        len(engine.tokenizer),
        explained=guessing.was_pruned(file),
    )


def _loss(rows: Sequence[AnswerLoss]) -> float:
    """Nats a token."""
    return math.fsum(row.nats for row in rows) / max(1, sum(row.tokens for row in rows))


def _require_finite(loss: AnswerLoss, file: Path, row: int) -> None:
    if not math.isfinite(loss.nats):
        raise InputError(
            f"{near(file)}: what it says of row {row} is no number",
            "its weights hold NaN or infinity, or overflow on the way",
            "take the file from its source again, or in another type, such as Q8_0",
        )


def file_facts(file: Path) -> dict[str, str | int]:
    """Which file it is, for the records: its name, its bytes and their sum."""
    length, total = file.stat().st_size, file_sum(file)
    return {"teacher_file": file.name, "teacher_bytes": length, "teacher_sha256": total}
