"""The teacher's answers on disk: top-k log-probabilities at every supervised position.

The teacher runs once, alone in memory; the student then learns from the files. A cache is a
folder named by the hash of everything its numbers depend on (samples, teacher, k, temperature),
so it is never stale. Its parts hold the samples in order, SAMPLES_A_PART each: ids (uint16 where
the vocabulary allows, else int32) and float16 log-probabilities, 4 or 6 bytes times k a token.
A part is there whole or not at all, so a stopped first pass goes on where it was; cache.json
with the checksum of every part comes last.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from slimtune.artifacts.files import are_sealed, broken, json_or_none, replacing, seal, write_json
from slimtune.console import near, tenth_done
from slimtune.errors import InputError
from slimtune.machine.disks import require_space
from slimtune.prompts import IGNORED
from slimtune.training.attention import bounds, shares_beginnings
from slimtune.training.batches import Sample, collate, ready
from slimtune.training.divergences import TeacherTopK
from slimtune.training.losses import CHUNK

_log = logging.getLogger(__name__)

SAMPLES_A_PART = 512
CACHE_MANIFEST = "cache.json"
TOKENS_PER_BATCH = 4096

TopKOfRows = Callable[
    [slice], TeacherTopK
]  # a slice of a batch's supervised positions -> the top-k
# (teacher, samples, k, temperature) -> its top-k, sample after sample, and of how many tokens
Ask = Callable[[Any, Sequence[Sample], int, float], tuple[TeacherTopK, int]]


class CachedTeacher:
    """What the teacher said, looked up by sample index; a batch at a time is in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part = cache(self._open)

    def says(self, batch: dict[str, Any], positions: torch.Tensor) -> TopKOfRows:
        """The top-k at the supervised positions of a batch, sample after sample."""
        rows = [self._sample(index) for index in batch["indices"]]
        ids = torch.cat([ids for ids, _ in rows]).to(positions.device, torch.int64)
        logs = torch.cat([logs for _, logs in rows]).to(positions.device, torch.float32)
        return lambda some: TeacherTopK(ids[some], logs[some])

    def _sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        part, place = divmod(index, SAMPLES_A_PART)
        ids, logs, starts = self._part(part)
        rows = slice(starts[place], starts[place + 1])
        # Widened at once: uint16 has few operations in torch, not even concatenation.
        return ids[rows].to(torch.int32), logs[rows]

    def _open(self, part: int) -> tuple[Any, Any, list[int]]:
        handle = safe_open(part_file(self._folder, part), framework="pt")
        starts = handle.get_tensor("starts").tolist()
        return handle.get_slice("ids"), handle.get_slice("log_probabilities"), starts


def key(samples: Sequence[Sample], teacher: str, top_k: int, temperature: float) -> str:
    """Hash of everything that the cached numbers depend on."""
    digest = hashlib.sha256(f"{teacher} {top_k} {temperature} {SAMPLES_A_PART}".encode())
    for sample in samples:
        digest.update(repr((sample.input_ids, sample.labels)).encode())
    return digest.hexdigest()[:16]


def part_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05}.safetensors"


def cache_bytes(samples: Sequence[Sample], top_k: int, vocabulary: int) -> int:
    """Bytes of the cache on disk, headers apart."""
    tokens = sum(sample.supervised for sample in samples)
    return tokens * min(top_k, vocabulary) * (2 + _id_type(vocabulary).itemsize)


def is_complete(folder: Path) -> bool:
    """Whether the cache is complete; InputError for one that is not what its manifest says."""
    if not (folder / CACHE_MANIFEST).is_file():
        return False
    manifest = json_or_none(folder / CACHE_MANIFEST) or {}
    if not are_sealed(manifest.get("files")) or "key" not in manifest:
        raise _damaged(folder, f"{CACHE_MANIFEST} is not what this version of SlimTune writes")
    changed = broken(folder, manifest["files"])
    if changed is not None:
        raise _damaged(folder, f"{changed} has changed since it was written")
    if manifest["key"] != folder.name:
        raise _damaged(folder, f"it was made for {manifest['key']}: other rows or another teacher")
    return True


def write_cache(
    folder: Path,
    load_teacher: Callable[[], Any],
    samples: Sequence[Sample],
    *,
    top_k: int,
    temperature: float,
    ask: Ask | None = None,
) -> None:
    """Run the teacher over the samples, part by part; parts that are there already stay.

    The teacher is loaded only if a part is missing. `ask` is how, for one that is no model of
    transformers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(-(-len(samples) // SAMPLES_A_PART))
    missing = [part for part in parts if not _readable(part_file(folder, part))]
    if missing and len(missing) < len(parts):
        _log.info("teacher: %d of %d parts are there", len(parts) - len(missing), len(parts))
    left = [one for part in missing for one in samples[_of_part(part)]]
    # At the least: ids of a vocabulary over 65,536 tokens take four bytes, and it is not known yet.
    least = cache_bytes(left, top_k, vocabulary=1 << 16)
    require_space(folder, least, "the teacher's answers are that large")
    teacher = load_teacher() if missing else None
    for part in missing:
        some = samples[_of_part(part)]
        said, vocabulary = (ask or ask_model)(teacher, some, top_k, temperature)
        _write_part(part_file(folder, part), some, said, vocabulary)
        before, done = part * SAMPLES_A_PART, part * SAMPLES_A_PART + len(some)
        if tenth_done(before, done, len(samples)):
            _log.info("teacher: %d of %d rows and texts read", done, len(samples))
    about = {"key": folder.name, "top_k": top_k, "temperature": temperature}
    sealed = seal(folder, without=CACHE_MANIFEST)
    # A part that a killed run was writing may lie there still: it belongs to nothing.
    files = {name: sealed[name] for name in sealed if name.endswith(".safetensors")}
    write_json(folder / CACHE_MANIFEST, about | {"samples": len(samples), "files": files})


def _of_part(part: int) -> slice:
    return slice(part * SAMPLES_A_PART, (part + 1) * SAMPLES_A_PART)


def _write_part(file: Path, samples: Sequence[Sample], said: TeacherTopK, vocabulary: int) -> None:
    starts = torch.tensor([0, *(sample.supervised for sample in samples)]).cumsum(0)
    tensors = {
        "ids": said.ids.to(_id_type(vocabulary)),
        "log_probabilities": said.log_probabilities.to(torch.float16),
        "starts": starts,
    }
    with replacing(file) as partial:
        save_file(tensors, partial)


def ask_model(
    teacher: PreTrainedModel, samples: Sequence[Sample], top_k: int, temperature: float
) -> tuple[TeacherTopK, int]:
    """The top-k at the supervised positions, sample after sample, and the size of the vocabulary.

    Samples of similar length are read together.
    """
    vocabulary = teacher.get_output_embeddings().weight.shape[0]
    top_k = min(top_k, vocabulary)
    starts = torch.tensor([0, *(sample.supervised for sample in samples)]).cumsum(0)
    ids = torch.empty(int(starts[-1]), top_k, dtype=torch.int32)
    logs = torch.empty(int(starts[-1]), top_k, dtype=torch.float16)
    for batch in _batches(samples):
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
        top = top_of(teacher, collate([samples[i] for i in batch]), top_k, temperature)
        ids[rows] = top.ids.to("cpu", torch.int32)
        logs[rows] = top.log_probabilities.to("cpu", torch.float16)
    return TeacherTopK(ids, logs), vocabulary


@torch.no_grad()
def top_of(
    teacher: PreTrainedModel, batch: dict[str, Any], top_k: int, temperature: float
) -> TeacherTopK:
    """The teacher's top-k at the supervised positions of a padding-free batch."""
    hidden, _ = hidden_states(teacher, batch)
    head = teacher.get_output_embeddings()
    parts = [
        (head(rows).float() / temperature).log_softmax(-1).topk(top_k)
        for rows in hidden.split(CHUNK[hidden.device.type])
    ]
    return TeacherTopK(
        torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
    )


@torch.no_grad()
def hidden_states(
    teacher: PreTrainedModel, batch: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teacher's head reads at the supervised positions, and these positions."""
    device = teacher.device
    positions = (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(1).to(device)
    how = teacher.config._attn_implementation
    batch, read = ready(batch, positions, shares=shares_beginnings(how))
    hidden = teacher.get_decoder()(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        use_cache=False,
        **bounds(batch["lengths"], how, device),
    ).last_hidden_state[0, read]
    return hidden, positions


def _batches(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Places of samples of similar length, at most TOKENS_PER_BATCH tokens together."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(samples)), key=lambda i: len(samples[i].input_ids)):
        length = len(samples[index].input_ids)
        if batch and tokens + length > TOKENS_PER_BATCH:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


def _id_type(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= 1 << 16 else torch.int32


def _readable(file: Path) -> bool:
    """A file of fewer bytes than its header promises does not open."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _damaged(folder: Path, why: str) -> InputError:
    return InputError(
        f"{near(folder)}: the teacher's cache cannot be trusted",
        why,
        f"delete {near(folder)}: the teacher answers again",
    )
