"""A GGUF as teacher: the file as it is, read by llama.cpp alone, fills the same cache as a folder.

Nothing is unpacked: a Q8_0 of 7B takes 7.2 GB where 16 bits need 13.5. What it holds likely is read
in llama.cpp's own pass over the rows, whose ids are the student's, so each id must be the same
bytes for both. Every row that was read waits in a file of its own until the cache is whole.
"""

import logging
import math
import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from slimtune.artifacts import run_of, sha256
from slimtune.config import Config
from slimtune.console import near, size
from slimtune.errors import InputError
from slimtune.inference import guessing
from slimtune.inference.answers import AnswerLoss, Candidate
from slimtune.inference.engines import Engine, open_engine
from slimtune.inference.gguf_tokenizer import GgufTokens, tokens_of
from slimtune.inference.top_choices import CHOICE_BYTES, TopChoices
from slimtune.machine.disks import require_space
from slimtune.models.gguf_header import GgufHeader, read_gguf
from slimtune.prompts import IGNORED, Encoded
from slimtune.training import teacher_cache
from slimtune.training.batches import Sample
from slimtune.training.divergences import TeacherTopK

_log = logging.getLogger(__name__)

_FILLING = re.compile(rb"\[PAD\d+\]")  # llama.cpp's converter's name for an id without a token
_SOUND_ROWS = 8  # of all, to find out whether it is a model at all


def difference(header: GgufHeader, student: PreTrainedTokenizerBase) -> str | None:
    """What tells the two vocabularies apart, in words; None where every id is the same bytes."""
    tokens, ours = tokens_of(header), student.get_vocab()
    theirs = [_bytes(header, token) for token in tokens.tokens[: _named(tokens)]]
    size = max(ours.values()) + 1
    for text, index in sorted(ours.items(), key=lambda one: one[1]):
        if index >= len(theirs):
            return f"the student's token {index}, {text!r}, is none of its {len(theirs):,}"
        if theirs[index] != _bytes(header, text.encode("utf-8", "surrogatepass")):
            told = theirs[index].decode("utf-8", "replace")
            return f"token {index} is {told!r} there and {text!r} for the student"
    more = len(theirs) - size
    return f"it has {more:,} tokens that the student lacks" if more > 0 else None


def _bytes(header: GgufHeader, token: bytes) -> bytes:
    """A token as what it stands for: SentencePiece writes its blank in more than one way.

    All else is one to one: byte-level BPE's letters for bytes, `<0x0A>`, the names of control
    tokens.
    """
    if header.get("tokenizer.ggml.model", str, "") == "gpt2":
        return token
    return token.replace("\u2581".encode(), b" ")


def _named(tokens: GgufTokens) -> int:
    """How many tokens there are without those at the end that fill up the matrix."""
    count = len(tokens.tokens)
    while count and (
        tokens.types[count - 1] == TokenType.UNUSED or _FILLING.fullmatch(tokens.tokens[count - 1])
    ):
        count -= 1
    return count


def write(folder: Path, config: Config, samples: Sequence[Sample]) -> None:
    """Fill the cache `folder` with what the file says of `samples`; what is there already stays."""
    file, settings = Path(config.distillation.teacher_model), config.distillation
    rows = folder.with_name(f"{folder.name}.rows")
    plan = TopChoices(rows, settings.top_k, settings.temperature, tokens_in(file))
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
    examples = [_example(sample) for sample in samples]
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


def _example(sample: Sample) -> Encoded:
    """Nothing predicts the first token of a sample."""
    return {"input_ids": sample.input_ids, "labels": [IGNORED, *sample.labels[1:]]}


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
    run, length = run_of(file), file.stat().st_size
    known = run["files"][file.name] if run else {}
    total = known["sha256"] if known.get("bytes") == length else sha256(file)
    return {"teacher_file": file.name, "teacher_bytes": length, "teacher_sha256": total}


def tokens_in(file: Path) -> int:
    """How many tokens it speaks of."""
    return _named(tokens_of(read_gguf(file)))
