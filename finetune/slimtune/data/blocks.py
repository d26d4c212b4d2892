"""A file in blocks of whole rows, which a worker parses without knowing the rest of the file.

Blocks of one file in order hold all its rows in order. Memory holds a block, not the file.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from slimtune.console import InputError
from slimtune.data import json_array
from slimtune.data.encodings import ENCODING_NAMES, NO_TEXT, open_text
from slimtune.data.sources import SourceFile

BLOCK_BYTES = 1 << 20  # characters; small enough that several in flight weigh little

csv.field_size_limit(2**31 - 1)  # the default refuses answers over 128 kB


@dataclass(frozen=True)
class Block:
    """Whole rows of a source: their text (an arrow batch for parquet) and the first one's line."""

    source: SourceFile
    line: int
    rows: Any
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadLine:
    """What stands where a row should, and why it is none."""

    text: str
    reason: str


NumberedRow = tuple[int, "dict[str, Any] | BadLine"]


def cut(source: SourceFile) -> Iterator[Block]:
    """The blocks of a source; InputError with file:line where no further row can be found."""
    if source.format == "parquet":
        yield from _cut_parquet(source)
        return
    with open_text(source.file, source.encoding) as stream:
        yield from _CUTTERS[source.format](stream, source)


def parse(block: Block) -> Iterator[NumberedRow]:
    """(line, row) of each row of a block; a BadLine in place of what is no row."""
    rows = _PARSERS[block.source.format](block)
    text = block.rows
    faulty = isinstance(text, str) and not text.isascii() and NO_TEXT.search(text)
    return _without_faulty(rows, block.source.encoding) if faulty else rows


def _without_faulty(rows: Iterator[NumberedRow], encoding: str) -> Iterator[NumberedRow]:
    """Rows with a byte that is no text in them are none: to guess at it would make mojibake."""
    for line, row in rows:
        text = row.text if isinstance(row, BadLine) else json.dumps(row, ensure_ascii=False)
        faulty = NO_TEXT.search(text)
        yield (
            line,
            BadLine(text, f"a byte that is not {ENCODING_NAMES[encoding]}") if faulty else row,
        )


def _cut_lines(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    line = 1
    while text := stream.read(BLOCK_BYTES):
        text += stream.readline()
        yield Block(source, line, text)
        line += text.count("\n")


def _parse_lines(block: Block) -> Iterator[NumberedRow]:
    # Not str.splitlines: it would split at the U+2028 inside a text.
    for line, text in enumerate(block.rows.split("\n"), start=block.line):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            yield line, BadLine(text, f"not valid JSON: {error.msg}")
        else:
            yield line, _object(row)


def _cut_array(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    try:
        for line, text in json_array.array_blocks(stream, BLOCK_BYTES, source.format):
            yield Block(source, line, text)
    except json_array.BrokenArray as broken:
        raise InputError(
            f"{source.file}:{broken.line}: cannot be read", broken.reason, broken.cure
        ) from broken


def _parse_array(block: Block) -> Iterator[NumberedRow]:
    for line, row in json_array.values(block.rows, block.line):
        yield line, _object(row)


def _object(row: Any) -> dict[str, Any] | BadLine:
    if isinstance(row, dict):
        return row
    text = json.dumps(row, ensure_ascii=False)
    return BadLine(text, f"a row must be an object, this is a {type(row).__name__}")


def _cut_csv(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    """Only a reader knows whether a line's end stands in quotes: so each row is read here too."""
    lines = _Remembered(stream)
    reader = csv.reader(lines, delimiter=source.delimiter, strict=True)
    header = tuple(column.strip() for column in _next(reader, source) or ())
    lines.taken()
    line = reader.line_num + 1
    while _next(reader, source) is not None:
        if lines.size >= BLOCK_BYTES:
            yield Block(source, line, lines.taken(), header)
            line = reader.line_num + 1
    if text := lines.taken():
        yield Block(source, line, text, header)


class _Remembered:
    """The lines of a stream, and those that were read since `taken` was last asked."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lines, self.size = stream, [], 0

    def __iter__(self) -> "_Remembered":
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self._lines.append(line)
        self.size += len(line)
        return line

    def taken(self) -> str:
        text = "".join(self._lines)
        self._lines, self.size = [], 0
        return text


def _next(reader: Any, source: SourceFile) -> list[str] | None:
    """The next row's fields; none of a broken row, None at the end."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        if "end of data" not in str(error):
            return []  # the worker, reading the same, says so of this row
        raise InputError(
            f"{source.file}:{line}: cannot be read",
            f"not valid CSV: {error} inside a quoted text",
            'close the quote; write a quote inside a text twice: ""',
        ) from error


def _parse_csv(block: Block) -> Iterator[NumberedRow]:
    text = io.StringIO(block.rows, newline="")
    reader = csv.reader(text, delimiter=block.source.delimiter, strict=True)
    while True:
        line = block.line + reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield line, BadLine("", f"not valid CSV: {error}")
            continue
        if fields is None:
            return
        if fields:
            yield line, _named(fields, block.header)


def _named(fields: list[str], header: tuple[str, ...]) -> dict[str, Any] | BadLine:
    if len(fields) > len(header):
        why = f"{len(fields)} fields under a header of {len(header)}"
        return BadLine(",".join(fields), why)
    return dict(zip(header, fields, strict=False))


def _cut_parquet(source: SourceFile) -> Iterator[Block]:
    import pyarrow
    from pyarrow import parquet

    try:
        line = 1
        for batch in parquet.ParquetFile(source.file).iter_batches(batch_size=2000):
            yield Block(source, line, batch)
            line += batch.num_rows
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.file}: cannot be read",
            f"not valid parquet: {str(error).splitlines()[0]}",
            "copy or download it again",
        ) from error


def _parse_parquet(block: Block) -> Iterator[NumberedRow]:
    for line, row in enumerate(block.rows.to_pylist(), start=block.line):
        yield line, _json_like(row)


def _json_like(row: dict[str, Any]) -> dict[str, Any]:
    """Bytes and times, which JSON has not, as text."""
    plain = (str, int, float, bool, list, dict, type(None))
    return {k: v if isinstance(v, plain) else str(v) for k, v in row.items()}


_CUTTERS: dict[str, Callable[[TextIO, SourceFile], Iterator[Block]]] = {
    **dict.fromkeys(json_array.FORMS, _cut_array),
    "jsonl": _cut_lines,
    "csv": _cut_csv,
}
_PARSERS: dict[str, Callable[[Block], Iterator[NumberedRow]]] = {
    **dict.fromkeys(json_array.FORMS, _parse_array),
    "jsonl": _parse_lines,
    "csv": _parse_csv,
    "parquet": _parse_parquet,
}
