"""Canonical rows: what prepare_data writes, and what training, evaluation and distillation read.

{"id", "messages": [{"role", "content"}...], "source": {"file", "line"}} and, where the row had
them, the Alpaca fields "instruction", "input", "output", "references" (several accepted answers)
and the column that groups rows. The line counts the rows of the file, as if it were JSON Lines:
so a row is the same whether it came as an array, as lines or as CSV. Readers here need every row
to be whole: the first that is not ends the reading, with its line.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from slimtune.config import Training
from slimtune.console import near
from slimtune.data import blocks, sources
from slimtune.data.columns import NUMBERED, found_in, renamed, suggestion
from slimtune.data.shapes import SHAPES, RawRow, detect, has_parts, unfolded
from slimtune.data.similarity import keys_of
from slimtune.data.turns import BadRow, Message, require_order, without_special_tokens
from slimtune.data.whole_numbers import whole_columns, with_integers
from slimtune.errors import InputError

_TOLD_ROWS = 3
SAMPLE = 100  # rows looked at to tell the shape of a file
_KEPT = ("instruction", "input", "output", "extract")

_log = logging.getLogger(__name__)

CanonicalRow = dict[str, Any]


def read_rows(file: Path) -> list[CanonicalRow]:
    """All rows of a prepared file; plain alpaca, qa, messages or sharegpt rows are converted.

    Raises InputError with file:line for anything that is not such a row.
    """
    numbered = [(line, renamed(row, {})) for line, row in read_raw_rows(file)]
    rows_alone = [row for _, row in numbered]
    shape = shape_of_row(file, rows_alone[:SAMPLE])
    whole = whole_columns(rows_alone[:SAMPLE], lambda: rows_alone, shape)
    rows = []
    for number, (line, row) in enumerate(numbered, start=1):
        try:
            rows += _converted(with_integers(row, whole), shape, file.name, number)
        except BadRow as bad:
            raise InputError(
                f"{file}:{line}: not usable as a row",
                f"{bad} (read as {shape})",
                f"python finetune/prepare_data.py --input {file} sets such rows aside",
            ) from bad
    _log.info("%s: %d row%s (%s)", near(file), len(rows), "" if len(rows) == 1 else "s", shape)
    return rows


def _converted(row: RawRow, shape: str, name: str, number: int) -> list[CanonicalRow]:
    if _is_canonical(row):
        messages = SHAPES[shape](row)
        require_order(messages)
        return [dict(row) | {"messages": messages}]
    rows = []
    for one, references in unfolded(row):
        # As prepare_data does: no text may end a turn or open a false one.
        messages = without_special_tokens(SHAPES[shape](one))
        require_order(messages)
        kept = alpaca_fields(one)
        rows.append(canonical(keys_of(messages).id, messages, name, number, kept, references))
    return rows


def shared_system(rows: Iterable[CanonicalRow]) -> str:
    """The system message that all rows open with, "" where one has none or another.

    What a model has never answered without belongs to it: it is recorded with what was trained.
    """
    found: str | None = None
    for row in rows:
        first = row["messages"][0]
        if first["role"] != "system" or found not in (None, first["content"]):
            return ""
        found = first["content"]
    return found or ""


def written_system(file: Path) -> str:
    """`shared_system` of a file that prepare_data wrote; the first row without one ends it."""
    if not file.is_file():
        return ""
    with file.open(encoding="utf-8") as lines:
        return shared_system(json.loads(line) for line in lines)


def beside(train_data: Path, split: str) -> Path | None:
    """The file of another split that prepare_data wrote beside `train_data`, None without one."""
    file = train_data.with_name(train_data.name.replace("_train.jsonl", f"_{split}.jsonl"))
    return file if file != train_data and file.is_file() and file.stat().st_size else None


def validation_file(training: Training) -> Path | None:
    """The rows for the validation loss: those that are named, or those beside the training rows."""
    return training.val_data or beside(training.train_data, "validation")


def canonical(
    identity: str,
    messages: Sequence[Message],
    name: str,
    number: int,
    kept: RawRow,
    references: Sequence[str] = (),
) -> CanonicalRow:
    """The row as every later stage expects it; its id is the same wherever the row is met again."""
    return {
        "id": identity,
        "messages": list(messages),
        "source": {"file": name, "line": number},
        **kept,
        **({"references": list(references)} if references else {}),
    }


def alpaca_fields(row: RawRow, group_column: str = "") -> dict[str, Any]:
    """The Alpaca fields of a row that are texts, and the column that groups it."""
    fields = {name: row[name] for name in _KEPT if isinstance(row.get(name), str)}
    group = row.get(group_column) if group_column else None
    return fields if group is None else fields | {group_column: group}


def _is_canonical(row: RawRow) -> bool:
    """Others have a "source" too, but not as an object beside "id" and "messages"."""
    return isinstance(row.get("source"), dict) and "id" in row and "messages" in row


def shape_of_row(file: Path, sample: Sequence[RawRow]) -> str:
    """The shape of most rows of the sample; InputError with the columns found if none fits."""
    shape = detect([one for row in sample for one, _ in unfolded(row)])
    if shape is None:
        raise no_usable_column(file, sample, list(SHAPES))
    return shape


def no_usable_column(file: Path, sample: Sequence[RawRow], shapes: Sequence[str]) -> InputError:
    """What to tell about a file of which no row fits any of `shapes`."""
    found = found_in(islice(sample, SAMPLE))
    there = [shape for shape in shapes if has_parts(shape, found)]
    if there:  # the columns are right: it is what they hold
        reasons = _first_reasons(sample, there[0])
        cure = "fill what is missing, or check --format-type and --columns"
    else:
        reasons = _first_reasons(sample[:1], shapes[0]) if len(shapes) == 1 else "no shape fits"
        if found and all(map(NUMBERED.fullmatch, found)):
            reasons = "no header: the first row looks like data, so the columns are called by place"
        cure = _list_within(file, sample) or suggestion(sample)
    return InputError(
        f"{file}: no usable row",
        f"{reasons}; columns found: {', '.join(found) or '(none)'}",
        cure,
    )


def _list_within(file: Path, sample: Sequence[RawRow]) -> str:
    """The cure for a file that is one object with the rows in a list somewhere in it."""
    lists = (
        name
        for row in sample
        for name, value in row.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    )
    name = next(lists, "") if len(sample) == 1 else ""
    return name and f"take out the list of rows: jq '.\"{name}\"' {file.name} > rows.json"


def _first_reasons(sample: Sequence[RawRow], shape: str) -> str:
    """Why the first rows are none, each by its number: `as qa: row 1: empty "answer"`."""
    reasons = []
    for number, row in enumerate(sample[:_TOLD_ROWS], start=1):
        try:
            SHAPES[shape](row)
        except BadRow as bad:
            reasons.append(f"row {number}: {bad}")
    return f"as {shape}: {'; '.join(reasons) or 'nothing usable'}"


def read_raw_rows(file: Path, input_format: str = "auto") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) for every row of `file` (or of the files in a folder), streamed.

    `input_format` is auto, json (an array and one object a line alike), jsonl, csv, tsv or parquet.
    Raises SettingsError for an unknown format; InputError for a missing or empty file, and with
    file:line for what cannot be parsed.
    """
    for source in sources.find(file, input_format):
        for block in blocks.cut(source):
            for line, row in blocks.parse(block):
                if isinstance(row, blocks.BadLine):
                    raise InputError(
                        f"{source.file}:{line}: cannot be read",
                        row.reason,
                        "repair or delete it; prepare_data.py sets such rows aside",
                    )
                yield line, row
