"""Rows of a real task, and what an evaluation does with them, for `evaluation.py`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prefixes

from slimtune.config import Config
from slimtune.evaluation import drafts
from slimtune.inference import batching
from slimtune.inference.answers import AnswerLoss, Generation, in_order
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import TransformersEngine
from slimtune.models import loading
from slimtune.models.compute import Compute
from slimtune.training.batches import Sample
from slimtune.training.dataset import read_dataset

SYSTEM = prefixes.SYSTEM
_DECODING = Decoding(max_new_tokens=32)


def samples(options: argparse.Namespace, folder: Path) -> tuple[list[Sample], Any]:
    """`count` prepared rows of the file at even distances, and the tokenizer."""
    rows = prefixes.prepared(options, folder)
    training = {"train_data": rows, "val_data": None}
    config = Config.model_validate(
        {"model": {"base_model": str(options.model)}, "training": training}
    )
    dataset = read_dataset(str(options.model), "auto", config.training)
    found = dataset.train
    count = min(options.count, len(found))
    return [found[number * len(found) // count] for number in range(count)], dataset.tokenizer


def loaded(model: Path, dtype: str) -> Any:
    settings = {"base_model": str(model), "dtype": dtype}
    return loading.load_model(
        str(model), Compute.of(Config.model_validate({"model": settings}).model)
    )


def scores(engine: TransformersEngine, rows: list[Sample]) -> list[AnswerLoss]:
    return in_order(engine.losses([vars(one) for one in rows]))


def told(
    engine: TransformersEngine, rows: list[Sample], losses: list[AnswerLoss]
) -> Mapping[int, Generation]:
    """The answers that scoring has told."""
    return drafts.told(engine, _prompts(rows), [vars(one) for one in rows], losses, _DECODING)


def answers(
    engine: TransformersEngine, rows: list[Sample], known: Mapping[int, Generation]
) -> list[str]:
    """The texts of all answers; those that are known are not decoded."""
    return [one.text for one in in_order(drafts.answers(engine, _prompts(rows), known, _DECODING))]


def _prompts(rows: list[Sample]) -> list[list[int]]:
    return [list(one.input_ids[: batching.before_needed(one.labels) + 1]) for one in rows]
