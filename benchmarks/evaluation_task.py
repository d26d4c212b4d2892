"""Rows of a real task, and what an evaluation does with them, for `evaluation.py`."""

import argparse
from pathlib import Path
from typing import Any

import prefixes

from slimtune.config import Config
from slimtune.inference import batching, generation, token_losses
from slimtune.inference.decoding import Decoding
from slimtune.models import loading
from slimtune.models.compute import Compute
from slimtune.training.batches import Sample
from slimtune.training.dataset import read_dataset

SYSTEM = prefixes.SYSTEM
_NEW_TOKENS = 32


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


def answers(model: Any, tokenizer: Any, rows: list[Sample]) -> list[Any]:
    prompts = [one.input_ids[: batching.before_needed(one.labels) + 1] for one in rows]
    return list(generation.generate(model, tokenizer, prompts, Decoding(_NEW_TOKENS)))


def scores(model: Any, tokenizer: Any, rows: list[Sample]) -> list[Any]:
    return list(token_losses.token_losses(model, [vars(one) for one in rows]))
