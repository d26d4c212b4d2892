"""Rows to token ids, and token ids to padding-free batches.

A batch is one row of tokens: the samples one after another, each counting its positions from 0,
and `lengths` to tell them apart. Nothing is padded. What samples begin with in common is computed
once (`prefixes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slimtune.errors import InputError
from slimtune.prompts import IGNORED, encode, puts_bos
from slimtune.training import prefixes

TrainingRow = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Token ids of a conversation, and labels: the id where it is learned, IGNORED elsewhere.

    `index` is the sample's place among its kind: teacher probabilities are looked up by it.
    """

    input_ids: list[int]
    labels: list[int]
    index: int = 0

    @property
    def supervised(self) -> int:
        """Positions that are learned: the first token of a sample never is, nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class EncodedRows:
    """The samples of a file of rows, and how many rows were shortened or did not fit at all."""

    samples: list[Sample]
    shortened: int
    dropped: int


def encode_rows(
    rows: Sequence[TrainingRow], tokenizer: Any, template: str, max_length: int
) -> EncodedRows:
    """Samples of at most `max_length` tokens under the prompt template.

    Raises InputError, with the row's file and line, when one would teach nothing, would not teach
    the model to stop, or begins a conversation twice; and when no row is left.
    """
    samples: list[Sample] = []
    shortened = dropped = 0
    for row in rows:
        encoded = encode(tokenizer, row["messages"], template)
        if encoded is not None and len(encoded["input_ids"]) > max_length:
            shortened += 1
            encoded = encode(tokenizer, row["messages"], template, max_length)
        if encoded is None:
            shortened, dropped = shortened - 1, dropped + 1
            continue
        sample = Sample(encoded["input_ids"], encoded["labels"], len(samples))
        source = row["source"]  # its line counts rows: an editor's line only in JSON Lines
        _require_sound(sample, tokenizer, f"row {source['line']} of {source['file']}")
        samples.append(sample)
    if not samples:
        raise InputError(
            "training rows: none is left",
            f"{dropped} of {len(rows)} rows have answers longer than {max_length} tokens",
            "raise --max-length",
        )
    return EncodedRows(samples, shortened, dropped)


def _require_sound(sample: Sample, tokenizer: Any, where: str) -> None:
    """InputError for a row that would ruin a model in silence; `where` is its file and line."""
    if not sample.supervised:
        raise InputError(
            f"{where}: nothing to learn in this row",
            "no token of an answer is left to supervise",
            "run prepare_data.py on the file: it rejects such rows",
        )
    last = next(label for label in reversed(sample.labels) if label != IGNORED)
    if last != tokenizer.eos_token_id:
        raise InputError(
            f"{where}: {tokenizer.eos_token} is not what the answer ends with",
            f"it ends with {tokenizer.convert_ids_to_tokens(last)}, and nothing stops at that: "
            "the model would talk on without end",
            "write eos_token after each answer in the template, or choose llama2, alpaca or chatml",
        )
    bos = tokenizer.bos_token_id
    pairs = zip(sample.input_ids, sample.input_ids[1:], strict=False)
    if bos is not None and (bos, bos) in pairs and puts_bos(tokenizer):
        raise InputError(
            f"{where}: two {tokenizer.bos_token} stand one after the other",
            "the template writes one and the tokenizer adds another, or the text holds one",
            "take bos_token out of the template",
        )


def encode_text(passages: Sequence[str], tokenizer: Any, max_length: int) -> list[Sample]:
    """Plain text as samples that are learned at every position, cut to `max_length` tokens."""
    samples = []
    for passage in passages:
        ids = tokenizer(passage).input_ids[: max_length - 1] + [tokenizer.eos_token_id]
        samples.append(Sample(ids, list(ids), len(samples)))
    return samples


def collate(samples: Sequence[Sample], share: bool = True) -> dict[str, Any]:
    """A padding-free batch: input_ids, position_ids, labels (1, tokens); lengths; sample indices.

    The first label of each sample is IGNORED, else a sample would be predicted from the one before.
    Where samples `share` a beginning, the parts of its `prefixes.Layout` are there as well, and
    `ready` makes use of them.
    """
    lengths = [len(sample.input_ids) for sample in samples]
    found = prefixes.layout([s.input_ids for s in samples], [s.labels for s in samples])
    batch = {
        "input_ids": torch.tensor([[i for sample in samples for i in sample.input_ids]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "labels": torch.tensor([[i for s in samples for i in [IGNORED, *s.labels[1:]]]]),
        "lengths": lengths,
        "indices": [sample.index for sample in samples],
    }
    return batch | vars(found) if share and found else batch


def ready(
    batch: dict[str, Any], positions: torch.Tensor, *, shares: bool
) -> tuple[dict[str, Any], torch.Tensor]:
    """`batch` as the model reads it, and where its `positions` (on the model's device) are then.

    With `shares` a beginning in common is there once.
    """
    if shares and "kept" in batch:
        kept, places = (batch[name].to(positions.device) for name in ("kept", "places"))
        ids, counted = (batch[name].to(kept.device) for name in ("input_ids", "position_ids"))
        positions = places[positions]
        batch = batch | {"input_ids": ids[:, kept], "position_ids": counted[:, kept]}
        batch["lengths"] = batch["pieces"]
    return batch, positions
