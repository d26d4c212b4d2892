"""The teacher's answers on disk: top-k log-probabilities at every supervised position.

The teacher runs once, alone in memory; the student then learns from the file. ids int32 and
log-probabilities float16: 6 · k bytes a token. The file is good for exactly the samples, teacher,
k and temperature it was made with: their hash is in its name.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from slimtune.prompts import IGNORED
from slimtune.training.batches import Sample, collate
from slimtune.training.losses import CHUNK, TeacherTopK

_log = logging.getLogger(__name__)

_TOKENS_PER_BATCH = 4096


class TeacherCache:
    """Top-k rows of a cache file by sample index."""

    def __init__(self, file: Path) -> None:
        with safe_open(file, framework="pt") as handle:
            self.ids = handle.get_tensor("ids")
            self.log_probabilities = handle.get_tensor("log_probabilities")
            self.starts = handle.get_tensor("starts").tolist()

    def of(self, indices: Sequence[int], device: torch.device) -> TeacherTopK:
        """The supervised positions of these samples, one after another."""
        rows = torch.cat([torch.arange(self.starts[i], self.starts[i + 1]) for i in indices])
        return TeacherTopK(
            self.ids[rows].to(device, torch.int64),
            self.log_probabilities[rows].to(device, torch.float32),
        )


def key(samples: Sequence[Sample], teacher: str, top_k: int, temperature: float) -> str:
    """Hash of everything that the cached numbers depend on."""
    digest = hashlib.sha256(f"{teacher} {top_k} {temperature}".encode())
    for sample in samples:
        digest.update(repr((sample.input_ids, sample.labels)).encode())
    return digest.hexdigest()[:16]


def write(
    file: Path,
    teacher: PreTrainedModel,
    samples: Sequence[Sample],
    *,
    top_k: int,
    temperature: float,
) -> None:
    """Run the teacher over the samples and write its top-k at every supervised position."""
    top_k = min(top_k, teacher.config.vocab_size)
    counts = torch.tensor([0, *(sample.supervised for sample in samples)])
    starts = counts.cumsum(0)
    total = int(starts[-1])
    ids = torch.empty(total, top_k, dtype=torch.int32)
    log_probabilities = torch.empty(total, top_k, dtype=torch.float16)
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].input_ids))
    done = 0
    for batch in _batches(order, samples):
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
        top = _top_k(teacher, [samples[i] for i in batch], top_k, temperature)
        ids[rows] = top.ids.to("cpu", torch.int32)
        log_probabilities[rows] = top.log_probabilities.to("cpu", torch.float16)
        done += len(batch)
        _log.info("teacher  %d of %d samples", done, len(samples))
    save_file({"ids": ids, "log_probabilities": log_probabilities, "starts": starts}, file)


def _batches(order: Sequence[int], samples: Sequence[Sample]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    tokens = 0
    for index in order:
        length = len(samples[index].input_ids)
        if batches[-1] and tokens + length > _TOKENS_PER_BATCH:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += length
    return batches


@torch.no_grad()
def _top_k(
    teacher: PreTrainedModel, samples: Sequence[Sample], top_k: int, temperature: float
) -> TeacherTopK:
    batch = collate(samples)
    positions = (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(1)
    device = teacher.device
    hidden = teacher.get_decoder()(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        lengths=batch["lengths"],
        use_cache=False,
    ).last_hidden_state[0, positions.to(device)]
    head = teacher.get_output_embeddings()
    parts = [
        (head(rows).float() / temperature).log_softmax(-1).topk(top_k)
        for rows in hidden.split(CHUNK[device.type])
    ]
    return TeacherTopK(
        torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
    )
