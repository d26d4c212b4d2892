"""Canonical rows: what prepare_data writes, and what training, evaluation and distillation read.

{"id", "messages": [{"role", "content"}...], "source": {"file", "line"}} and, where the row had
them, the Alpaca fields "instruction", "input", "output" and the column that groups rows.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimtune.console import InputError
from slimtune.data import readers
from slimtune.data.cleaning import fingerprint
from slimtune.data.formats import FORMATS, BadRow, Message, Row, columns, detect

SAMPLE = 100  # rows looked at to tell the shape of a file
_KEPT = ("instruction", "input", "output")

logger = logging.getLogger(__name__)

CanonicalRow = dict[str, Any]


def read_rows(file: Path) -> list[CanonicalRow]:
    """All rows of a prepared file; plain alpaca, qa, messages or sharegpt rows are converted.

    Raises InputError with file:line for anything that is not such a row.
    """
    numbered = list(readers.read(file))
    shape = shape_of(file, [row for _, row in numbered[:SAMPLE]])
    rows = []
    for line, row in numbered:
        try:
            messages = FORMATS[shape](row)
        except BadRow as bad:
            raise InputError(
                f"{file}:{line}: not usable as a row",
                f"{bad} (read as {shape})",
                f"python finetune/prepare_data.py --input {file} sets such rows aside",
            ) from bad
        prepared = _is_canonical(row)
        rows.append(
            row | {"messages": messages} if prepared else canonical(row, messages, file, line)
        )
    logger.info("%s: %d rows (%s)", file, len(rows), shape)
    return rows


def beside(train_data: Path, split: str) -> Path | None:
    """The file of another split that prepare_data wrote beside `train_data`, None without one."""
    file = train_data.with_name(train_data.name.replace("_train.jsonl", f"_{split}.jsonl"))
    return file if file != train_data and file.is_file() and file.stat().st_size else None


def canonical(
    row: Row, messages: Sequence[Message], file: Path, line: int, group_column: str = ""
) -> CanonicalRow:
    """The row as every later stage expects it; its id is the same wherever the row is met again."""
    kept = [name for name in (*_KEPT, group_column) if name in row and row[name] is not None]
    return {
        "id": fingerprint(messages)[:16],
        "messages": list(messages),
        "source": {"file": file.name, "line": line},
        **{name: row[name] for name in kept},
    }


def _is_canonical(row: Row) -> bool:
    """Others have a "source" too, but not as an object beside "id" and "messages"."""
    return isinstance(row.get("source"), dict) and "id" in row and "messages" in row


def shape_of(file: Path, sample: Sequence[Row]) -> str:
    """The shape of most rows of the sample; InputError with the columns found if none fits."""
    shape = detect(sample)
    if shape is None:
        raise no_usable_column(file, sample, list(FORMATS))
    return shape


def no_usable_column(file: Path, sample: Sequence[Row], shapes: Sequence[str]) -> InputError:
    """What to tell about a file of which no row fits any of `shapes`."""
    reason = _first_reason(sample, shapes[-1]) if len(shapes) == 1 else "no shape fits"
    return InputError(
        f"{file}: no usable row",
        f"{reason}; columns found: {', '.join(columns(sample)) or '(none)'}",
        "rename columns to instruction/output or question/answer, or name another --format-type",
    )


def _first_reason(sample: Sequence[Row], shape: str) -> str:
    try:
        FORMATS[shape](sample[0])
    except BadRow as bad:
        return f"as {shape}: {bad}"
    return f"as {shape}: nothing usable"
