"""Rows for the model to read: the prepared data where there are some, else its own words."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from slimtune import prompts
from slimtune.config import Config
from slimtune.console import near
from slimtune.data.rows import read_rows
from slimtune.errors import InputError, SettingsError
from slimtune.inference import guessing
from slimtune.inference.stack import TokenBatch, batches_of, read_layers
from slimtune.models import tokenizers
from slimtune.models.model_shape import ModelShape
from slimtune.models.positions import followed
from slimtune.pruning.criteria import CALIBRATED
from slimtune.pruning.writer import no_numbers

_log = logging.getLogger(__name__)
_CHECK_EVERY = 5  # every so manieth row is kept back to measure the model before and after


@dataclass(frozen=True)
class Calibration:
    """What is read to choose and refit (`batches`), and what to measure with (`check`)."""

    batches: list[TokenBatch]
    check: list[TokenBatch]
    source: str

    @property
    def tokens(self) -> int:
        return sum(batch.tokens for batch in self.batches)


def source_of(config: Config) -> str | None:
    """ "rows", "self" or None: where calibration rows come from, by settings and what is there.

    `auto` takes prepared rows where there are some, and the model's own words where something
    cannot be done without: a calibrated criterion, or a cut of layers. SettingsError where that
    is forbidden by `none`.
    """
    pruning = config.pruning
    needed = CALIBRATED[pruning.criterion] or pruning.layer_ratio > 0
    needed |= pruning.sparsity > 0 and pruning.sparsity_method == "wanda"
    if pruning.calibration == "none" and needed:
        raise SettingsError(
            "pruning.calibration: none",
            "the criteria activation and taylor, cuts of layers and Wanda need rows to read",
            "use --calibration auto, or --criterion magnitude without --layer-ratio",
        )
    if pruning.calibration == "none":
        return None
    rows = config.training.train_data
    named = "training.train_data" in config.options.flags
    if pruning.calibration == "auto" and (named or os.path.lexists(rows)):
        return "rows"
    return "self" if needed or pruning.calibration == "self" else None


def calibrate(model: Path, config: Config) -> Calibration | None:
    """The calibration of `model` as config.pruning asks for it; None for none."""
    source, pruning = source_of(config), config.pruning
    if source is None:
        return None
    longest = longest_row(model, config)
    if source == "rows":
        rows = prepared_rows(model, config, pruning.calibration_rows, longest)
        said = near(config.training.train_data)
    else:
        rows = own_words(model, pruning.calibration_rows, longest, pruning.seed)
        said = "the model's own words"
    _log.info("calibration: %d rows from %s", len(rows), said)
    return Calibration(
        batches=batches_of([row for n, row in enumerate(rows) if n % _CHECK_EVERY]),
        check=batches_of(rows[::_CHECK_EVERY]),
        source=source,
    )


def prepared_rows(model: Path, config: Config, count: int, longest: int) -> list[list[int]]:
    """`count` prepared rows, spread over the file, as the model meets them in training."""
    rows = read_rows(config.training.train_data)
    tokenizer = tokenizers.load_tokenizer(model)
    template = prompts.template_of(config.model.prompt_template, tokenizer)
    step = max(1, len(rows) // count)
    encoded = [
        prompts.encode(tokenizer, row["messages"], template, longest)
        for row in rows[::step][:count]
    ]
    found = [one["input_ids"] for one in encoded if one and len(one["input_ids"]) > 1]
    if len(found) < 2:
        raise InputError(
            f"{near(config.training.train_data)}: too few rows to calibrate with",
            f"{len(found)} rows fit into {longest} tokens",
            "raise --calibration-length, or use --calibration self",
        )
    return found


@torch.inference_mode()
def own_words(model: Path, count: int, length: int, seed: int) -> list[list[int]]:
    """`count` texts of `length` tokens that the model writes itself, from its BOS, by chance.

    The model is whole in memory for this. Data-free calibration, as LLM-QAT has it
    (arXiv:2305.17888): what a model says shows what it can.
    """
    from slimtune.models.compute import Compute
    from slimtune.models.loading import load_model

    loaded = load_model(model, Compute.choose("cpu"))
    start = loaded.config.bos_token_id
    start = 1 if start is None else start
    torch.manual_seed(seed)
    rows: list[list[int]] = []
    while len(rows) < count:
        size = min(64, count - len(rows))
        said = loaded.generate(
            torch.full((size, 1), start),
            attention_mask=torch.ones(size, 1, dtype=torch.long),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=length - 1,
            max_new_tokens=length - 1,
            pad_token_id=start,
        )
        rows += said.tolist()
    return rows


def require_sound(model: Path, calibration: Calibration, perplexity: float, scratch: Path) -> None:
    """A caution, or InputError, for a model that is worse than guessing before anything is cut.

    `perplexity` is that on the rows kept back; its own words, if they are that, prove nothing.
    """
    if math.isnan(perplexity):
        raise no_numbers(model)
    from slimtune.models.weights import Checkpoint

    tokenizer = tokenizers.load_tokenizer(model)

    def plain() -> float:
        texts = [one["input_ids"] for one in guessing.examples(tokenizer)]
        read = [read_layers(model, batches_of([ids]), scratch) for ids in texts]
        return math.log(min(one.perplexity for one in read))

    rows = math.log(perplexity) if calibration.source == "rows" else math.inf
    vocabulary = Checkpoint(model).config["vocab_size"]
    pruned = guessing.was_pruned(model)
    guessing.judge(model, rows, plain, vocabulary, explained=pruned)


def longest_row(model: Path, config: Config) -> int:
    """Tokens of a calibration row that the model can follow; SettingsError for more asked for."""
    from slimtune.models.weights import Checkpoint

    about = Checkpoint(model).config
    ModelShape.of(about)
    setting = "pruning.calibration_length"
    return followed(setting, config.pruning.calibration_length, about, model)
