"""From prepared files to samples, with the checks that must come before the first step.

What is shown and refused here is what ruins runs in silence elsewhere: answers that are not
supervised, an end token that is masked or missing, a tokenizer that does not fit the model, rows
that lose their content to the length limit.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.config import Config, Training
from slimtune.console import near
from slimtune.data.rows import CanonicalRow, read_rows, shared_system, validation_file
from slimtune.errors import InputError, SettingsError
from slimtune.models import tokenizers
from slimtune.models.folders import local_folder
from slimtune.models.weights import EMBEDDING, Checkpoint
from slimtune.prompts import IGNORED
from slimtune.training import replaying
from slimtune.training.batches import EncodedRows, Sample, encode_rows

_log = logging.getLogger(__name__)

_SHOWN_ROWS = 2


@dataclass(frozen=True)
class Dataset:
    """What a run learns from: the tokenizer with its template, training and validation samples.

    `system_prompt` is what all training rows open with, "" without one. The last `replayed` of the
    training samples are general ones, of `replay_file`.
    """

    tokenizer: PreTrainedTokenizerFast
    train: list[Sample]
    validation: list[Sample]
    files: list[Path]
    system_prompt: str = ""
    replay_file: Path | None = None
    replayed: int = 0

    @property
    def named(self) -> dict[str, Path]:
        """The files by what they are for: {"training rows": ..., "validation rows": ...}."""
        found = dict(zip(("training rows", "validation rows"), self.files, strict=False))
        return found | ({"replayed rows": self.replay_file} if self.replay_file else {})

    @property
    def tokens(self) -> int:
        return sum(len(sample.input_ids) for sample in self.train)

    def summary(self) -> dict[str, Any]:
        """Counts for --dry-run and run.json."""
        supervised = sum(sample.supervised for sample in self.train)
        return {
            "training_rows": len(self.train),
            **({"replayed_rows": self.replayed} if self.replayed else {}),
            "validation_rows": len(self.validation),
            "tokens_per_epoch": self.tokens,
            "supervised_share": round(supervised / self.tokens, 3),
        }


def read_dataset(
    model: str, template_name: str, settings: Training, *, modelfile: bool = False
) -> Dataset:
    """Samples of the training rows, and of the validation rows named or found beside them.

    Raises InputError for a row that teaches nothing or no end, for a doubled BOS, and for a
    tokenizer that does not fit the model or pads with its end token; SettingsError when more rows
    than allowed are longer than max_length, and for a template of which a wanted `modelfile` could
    not be made.
    """
    tokenizer = tokenizers.load_tokenizer(model)
    rows = Checkpoint(local_folder(model)).shapes[EMBEDDING][0]
    tokenizers.check_vocabulary(tokenizer, rows)
    _require_padding(tokenizer)
    prompts.tell_choice(template_name, tokenizer, modelfile=modelfile)
    tokenizer.chat_template = prompts.template_of(template_name, tokenizer)
    held = validation_file(settings)
    learned = read_rows(settings.train_data)
    train = _encode(settings.train_data, learned, tokenizer, settings).samples
    replay = replaying.replay_file(settings, tokenizer)
    more = replaying.replayed(replay, len(train), tokenizer, settings) if replay else []
    validation: list[Sample] = []
    if held:
        rows = read_rows(held)
        validation = _encode(held, rows, tokenizer, settings).samples
    if not validation:
        _log.info("no validation rows: the last step is kept, not the best")
    _show(train[:_SHOWN_ROWS], tokenizer)
    files = [settings.train_data, *([held] if held else [])]
    system = shared_system(learned)
    return Dataset(tokenizer, [*train, *more], validation, files, system, replay, len(more))


def dataset_of(config: Config, model: str | Path) -> Dataset:
    """The rows that the settings name, as `model` reads them."""
    template, modelfile = config.model.prompt_template, config.gguf.wants_modelfile
    return read_dataset(str(model), template, config.training, modelfile=modelfile)


def read_after_trim(config: Config, dataset: Dataset) -> Callable[[str | Path], Dataset]:
    """Model -> the rows as it reads them: as the base does, with other ids once tokens are gone."""
    return partial(dataset_of, config) if config.pruning.trims else lambda _: dataset


def _encode(
    file: Path, rows: list[CanonicalRow], tokenizer: PreTrainedTokenizerFast, settings: Training
) -> EncodedRows:
    encoded = encode_rows(rows, tokenizer, tokenizer.chat_template, settings.max_length)
    cut = encoded.shortened + encoded.dropped
    if cut > settings.max_truncated_share * len(rows):
        raise SettingsError(
            f"{near(file)}: {cut} of {len(rows)} rows are longer than {settings.max_length} tokens",
            f"more than {settings.max_truncated_share:.0%} of the rows would lose text",
            "raise --max-length, shorten the rows, or allow it with --max-truncated-share",
        )
    if cut:
        _log.info(
            "%s: %d rows shortened at the start of their prompt, %d left out (max_length %d)",
            near(file),
            encoded.shortened,
            encoded.dropped,
            settings.max_length,
        )
    return encoded


def _require_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """InputError where padding is the end token."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            "tokenizer: its padding token is its end token",
            "whatever masks padding would teach the model never to stop",
            "give the tokenizer a padding token of its own, for example <unk>",
        )


def _show(samples: list[Sample], tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows as the model meets them; what is learned stands between «and»."""
    _log.info("the first training rows as the model reads them; it learns to write «this»:")
    for sample in samples:
        shown = ""
        pairs = zip(sample.input_ids, sample.labels, strict=True)
        for learned, part in groupby(pairs, lambda pair: pair[1] != IGNORED):
            # Decoded together: a Chinese character may be three tokens.
            text = tokenizer.decode([token for token, _ in part])
            shown += f"«{text}»" if learned else text
        _log.info("  %s", shown)
