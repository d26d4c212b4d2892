"""Raw file in, clean and split rows out, and an account in which every row of the file appears."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from slimtune.console import InputError, SettingsError
from slimtune.data import readers, report
from slimtune.data.account import Account, Size
from slimtune.data.cleaning import fingerprint, without_leaks
from slimtune.data.formats import FORMATS, BadRow, Message, Row, fits
from slimtune.data.rows import SAMPLE, CanonicalRow, canonical, no_usable_column, shape_of
from slimtune.data.splits import SPLITS, prompt_key, split_of
from slimtune.data.text import language

logger = logging.getLogger(__name__)

Encode = Callable[[list[Message]], Any]  # messages -> {"input_ids", "labels"}, None if too long


@dataclass(frozen=True)
class Prepared:
    """The rows of each split, the rows set aside with their reason, and the report's numbers."""

    splits: dict[str, list[CanonicalRow]]
    rejected: list[dict[str, Any]]
    numbers: dict[str, Any]


def prepare(
    file: Path,
    *,
    input_format: str = "auto",
    format_type: str = "auto",
    ratios: tuple[float, float, float] = (0.85, 0.05, 0.1),
    seed: int = 42,
    group_column: str = "",
    max_rows: int | None = None,
    system_prompt: str = "",
    encode: Encode | None = None,
) -> Prepared:
    """Read, convert, remove duplicates, split, count.

    Rows with the same value in `group_column` stay together; the others go by their question.
    `system_prompt` opens every conversation that has no system message of its own.
    `encode` (a tokenizer and a template in one call) adds token counts to the numbers. Raises
    InputError for a file without usable rows, SettingsError for an unknown format.
    """
    rows, shape = _recognise(file, islice(readers.read(file, input_format), max_rows), format_type)
    splits: dict[str, list[CanonicalRow]] = {name: [] for name in SPLITS}
    rejected: list[dict[str, Any]] = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        try:
            messages = FORMATS[shape](row)
        except BadRow as bad:
            rejected.append(_set_aside(file, line, "rejected", str(bad), row))
            continue
        if system_prompt and messages[0]["role"] != "system":
            messages = [Message(role="system", content=system_prompt), *messages]
        same = first_line.setdefault(fingerprint(messages), line)
        if same != line:
            rejected.append(_set_aside(file, line, "duplicate", f"same as line {same}", row))
            continue
        split = split_of(_split_key(row, messages, group_column), ratios, seed)
        splits[split].append(canonical(row, messages, file, line, group_column))
    splits, leaked = without_leaks(splits)
    for row in leaked:
        why = "its question is also in a split kept for judging"
        rejected.append(_set_aside(file, row["source"]["line"], "leak", why, row))
    _require_train(file, splits, rejected, shape)
    return Prepared(
        splits, rejected, report.numbers(_account(file, shape, splits, rejected, encode))
    )


def _account(
    file: Path,
    shape: str,
    splits: dict[str, list[CanonicalRow]],
    rejected: list[dict[str, Any]],
    encode: Encode | None,
) -> Account:
    account = Account(sources=[{"file": file.name, "shape": shape}])
    for entry in rejected:
        account.set_aside(entry["kind"], entry["reason"])
    for split, rows in splits.items():
        for row in rows:
            encoded = encode(row["messages"]) if encode else None
            supervised = sum(label != -100 for label in encoded["labels"]) if encoded else 0
            sizes = [Size(len(encoded["input_ids"]), supervised)] if encoded else []
            spoken = "\n".join(message["content"] for message in row["messages"])
            account.keep(split, language(spoken), sizes)
    return account


def write(prepared: Prepared, folder: Path, name: str) -> list[Path]:
    """Write {name}_{split}.jsonl, rejected.jsonl and data_report.{json,md}; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{name}_{split}.jsonl": rows for split, rows in prepared.splits.items()}
    for file, rows in (files | {"rejected.jsonl": prepared.rejected}).items():
        _write_lines(folder / file, rows)
    report.write(prepared.numbers, folder)
    reports = ("rejected.jsonl", *report.FILES)
    return [folder / file for file in (*files, *reports)]


def _recognise(
    file: Path, rows: Iterator[readers.NumberedRow], format_type: str
) -> tuple[Iterable[readers.NumberedRow], str]:
    """The rows and their shape; InputError at once if none of the first ones is usable."""
    if format_type != "auto" and format_type not in FORMATS:
        raise SettingsError(
            f"format type {format_type!r}: unknown",
            f"known are auto, {', '.join(FORMATS)}",
            "--format-type auto looks at the columns",
        )
    head = list(islice(rows, SAMPLE))
    sample = [row for _, row in head]
    shape = shape_of(file, sample) if format_type == "auto" else format_type
    if not any(fits(shape, row) for row in sample):
        raise no_usable_column(file, sample, [shape])
    return chain(head, rows), shape


def _split_key(row: Row, messages: list[Message], group_column: str) -> str:
    group = row.get(group_column) if group_column else None
    return prompt_key(messages) if group in (None, "") else f"{group_column}\n{group}"


def _set_aside(file: Path, line: int, kind: str, reason: str, row: Row) -> dict[str, Any]:
    return {"file": file.name, "line": line, "kind": kind, "reason": reason, "row": row}


def _require_train(
    file: Path, splits: dict[str, list[CanonicalRow]], rejected: list[Any], shape: str
) -> None:
    if not splits["train"]:
        raise InputError(
            f"{file}: no row left to train on",
            f"read as {shape}: {len(rejected)} set aside, {sum(map(len, splits.values()))} kept",
            "give more rows, or smaller shares for validation and test",
        )
    for name in SPLITS[1:]:
        if not splits[name]:
            logger.warning("%s: the %s split is empty; give it more rows or a share", file, name)


def _write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    # A lone surrogate in a rejected row comes out as the JSON escape it came in as.
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
