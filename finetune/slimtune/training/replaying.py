"""General rows among those of the task (training.replay), so that what the base can is not lost.

Rehearsal of old rows is the oldest cure of forgetting (Robins 1995, "Catastrophic forgetting,
rehearsal and pseudorehearsal"). The rows are a file of the user's, prepared rows or plain text, or
the project's own; those that ask what evaluation asks are left out.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from slimtune.artifacts.files import text_lines
from slimtune.config import Training
from slimtune.console import near
from slimtune.data.general_sets import general_set, rows_file, set_name
from slimtune.data.rows import CanonicalRow, read_rows
from slimtune.data.similarity import keys_of
from slimtune.errors import InputError
from slimtune.models.tokenizers import vocabulary_digest
from slimtune.training.batches import Sample, encode_rows, encode_text

_log = logging.getLogger(__name__)
_Row = TypeVar("_Row")

_TEXT = ".txt"


def replay_file(settings: Training, tokenizer: Any) -> Path | None:
    """The file that is replayed from: the one named, else the project's; None where nothing is."""
    if not settings.replay:
        return None
    return settings.replay_data or rows_file(set_name(vocabulary_digest(tokenizer)))


def replayed(file: Path, rows: int, tokenizer: Any, settings: Training) -> list[Sample]:
    """As many samples of `file` as make training.replay of all, beside `rows` rows of the task.

    Drawn by training.seed, each once before any comes again. InputError for a file without rows.
    """
    wanted = max(round(settings.replay / (1 - settings.replay) * rows), 1)
    if file.suffix == _TEXT:
        cure = "name another file with --replay-data, or leave it out for the project's own rows"
        lines = text_lines(file, "training.replay_data", cure)
        passages = _drawn(file, lines, wanted, settings.seed)
        samples = encode_text(passages, tokenizer, settings.max_length)
    else:
        chosen = _drawn(file, _unasked(file), wanted, settings.seed)
        template = tokenizer.chat_template
        samples = encode_rows(chosen, tokenizer, template, settings.max_length).samples
    share = len(samples) / (rows + len(samples))
    _log.info(
        "replay: %d of %d rows (%.0f %%) are general ones, of %s",
        len(samples),
        rows + len(samples),
        100 * share,
        near(file),
    )
    return [replace(sample, index=rows + sample.index) for sample in samples]


def _unasked(file: Path) -> list[CanonicalRow]:
    """The rows of a file that ask nothing that evaluation asks: else memory would be measured."""
    general = general_set("project").items
    asked = {keys_of([{"role": "user", "content": item.question}]).question for item in general}
    rows = read_rows(file)
    kept = [row for row in rows if keys_of(row["messages"]).question not in asked]
    if len(kept) < len(rows):
        _log.info("%s: %d rows left out, evaluation asks them", near(file), len(rows) - len(kept))
    return kept


def _drawn(file: Path, rows: Sequence[_Row], wanted: int, seed: int) -> list[_Row]:
    if not rows:
        raise InputError(
            f"{near(file)}: nothing to replay",
            "training.replay_data names it, and it has no row that may be used",
            "name another file with --replay-data, or leave it out for the project's own rows",
        )
    draw, found = random.Random(seed), []
    while len(found) < wanted:
        found += draw.sample(rows, min(len(rows), wanted - len(found)))
    return found
