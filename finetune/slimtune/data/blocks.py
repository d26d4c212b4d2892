"""A file in blocks of whole rows, which a worker parses without knowing the rest of the file.

Blocks of one file in order hold all its rows in order. Memory holds a block, not the file.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from slimtune.console import InputError
from slimtune.data import json_array
from slimtune.data.encodings import ENCODING_NAMES, NO_TEXT, open_text
from slimtune.data.json_array import DECODER, TWICE
from slimtune.data.sources import SourceFile, table_rows

_AROUND = " \t\r\n\ufeff"  # a byte order mark stands where files were put one behind the other
_GLUE = re.compile(r"[ \t\r,\ufeff]*")
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
        text = text.strip(_AROUND)
        if text:
            for row in _objects_of(text):
                yield line, row


def _objects_of(text: str) -> Iterator[dict[str, Any] | BadLine]:
    """The objects of one line: one, as it should be, or several glued together or with commas."""
    at = 0
    try:
        while at < len(text):
            row, end = DECODER.raw_decode(text, at)
            yield _object(row)
            at = _GLUE.match(text, end).end()
    except (ValueError, RecursionError) as error:
        yield BadLine(text[at:], f"not valid JSON: {_fault(error)}")


def _fault(error: ValueError | RecursionError) -> str:
    """What a decoder stopped at; Python reads no number of more than 4,300 digits."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number without end"


def _cut_columns(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    """A table that is one object, as lines: it was small enough to be recognised whole."""
    rows = table_rows(DECODER.decode(stream.read())) or []
    yield Block(source, 1, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def _cut_array(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    try:
        for line, text in json_array.array_blocks(stream, BLOCK_BYTES, source.format):
            yield Block(source, line, text)
    except json_array.BrokenArray as broken:
        raise InputError(
            f"{source.file}:{broken.line}: cannot be read", broken.reason, broken.cure
        ) from broken
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source.file}: cannot be read",
            f"not valid JSON: {_fault(error)}",
            "write one object a line (JSON Lines): then only such rows are set aside",
        ) from error


def _parse_array(block: Block) -> Iterator[NumberedRow]:
    for line, row in json_array.values(block.rows, block.line):
        yield line, _object(row)


def _object(row: Any) -> dict[str, Any] | BadLine:
    if isinstance(row, dict):
        if TWICE not in row:
            return row
        name = row.pop(TWICE)
        text = json.dumps(row, ensure_ascii=False)
        return BadLine(text, f'"{name}" stands twice in the row')
    text = json.dumps(row, ensure_ascii=False)
    return BadLine(text, f"a row must be an object, this is a {type(row).__name__}")


def _cut_csv(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    """Only a reader knows whether a line's end stands in quotes: so each row is read here too."""
    lines = _Remembered(stream)
    reader = csv.reader(lines, strict=True, **_dialect(source))
    header = _header(reader, source)
    lines.taken()
    line = reader.line_num + 1
    while _next(reader, source) is not None:
        if lines.size >= BLOCK_BYTES:
            yield Block(source, line, lines.taken(), header)
            line = reader.line_num + 1
    if text := lines.taken():
        yield Block(source, line, text, header)


def _dialect(source: SourceFile) -> dict[str, Any]:
    quoting = csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE
    return {"delimiter": source.delimiter, "quoting": quoting}


def _header(reader: Any, source: SourceFile) -> tuple[str, ...]:
    """The names of the columns; blank ones get a number. InputError where one stands twice.

    `source.above` lines come before them: `sep=;`, a title, blank lines.
    """
    fields: list[str] = []
    while reader.line_num < source.above or not fields:
        found = _next(reader, source)
        if found is None:
            return ()
        fields = found if reader.line_num > source.above else []
    names = [_cell(column) or f"column {place}" for place, column in enumerate(fields, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        places = [str(place) for place, name in enumerate(names, start=1) if name == twice]
        raise InputError(
            f"{source.file}:{reader.line_num}: the header has {twice!r} twice",
            f"columns {' and '.join(places)} bear it, and one of the two would be lost in silence",
            "give each column a name of its own",
        )
    return tuple(names)


def _cell(text: str) -> str:
    return text.strip(_AROUND)


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
    lines = block.rows.split("\n")
    text = io.StringIO(block.rows, newline="")
    reader = csv.reader(text, strict=True, **_dialect(block.source))
    while True:
        start = reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raw = "\n".join(lines[start : reader.line_num])
            yield block.line + start, BadLine(raw, f"not valid CSV: {error}")
            continue
        if fields is None:
            return
        spanned = lines[start : reader.line_num]
        if _swallowed(spanned, block):
            yield from _one_by_one(spanned, block.line + start, block)
        elif any(map(str.strip, fields)):  # a spreadsheet's blank rows are none
            yield block.line + start, _named(fields, block.header)


def _swallowed(spanned: list[str], block: Block) -> bool:
    """Whether a quoted text over several lines has taken in rows that were no part of it.

    A stray quote opens it in one row and another closes it in a later one: then every line has as
    many delimiters as the header. A text that spans lines rarely has them in its every line.
    """
    delimiters = len(block.header) - 1
    if len(spanned) < 2 or not delimiters:
        return False
    return all(line.count(block.source.delimiter) == delimiters for line in spanned)


def _one_by_one(spanned: list[str], first: int, block: Block) -> Iterator[NumberedRow]:
    """Each line as a row of its own; those with the stray quote are set aside as they stand."""
    for line, text in enumerate(spanned, start=first):
        if text.count('"') % 2:
            yield line, BadLine(text, "a quote that is not closed in its line")
        else:
            (fields,) = csv.reader([text], **_dialect(block.source))
            yield line, _named(fields, block.header)


def _named(fields: list[str], header: tuple[str, ...]) -> dict[str, Any] | BadLine:
    if len(fields) > len(header):
        why = f"{len(fields)} fields under a header of {len(header)}"
        return BadLine(",".join(fields), why)
    if fields[0].startswith("\ufeff"):
        fields = [fields[0].lstrip("\ufeff"), *fields[1:]]
    if tuple(map(_cell, fields)) == header:
        return BadLine(",".join(fields), "the header once more: files put one behind the other")
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
    return {name: _json_value(value) for name, value in row.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {name: _json_value(one) for name, one in value.items()}
    return value if isinstance(value, str | int | None) else str(value)


_CUTTERS: dict[str, Callable[[TextIO, SourceFile], Iterator[Block]]] = {
    **dict.fromkeys(json_array.FORMS, _cut_array),
    "jsonl": _cut_lines,
    "columns": _cut_columns,
    "csv": _cut_csv,
}
_PARSERS: dict[str, Callable[[Block], Iterator[NumberedRow]]] = {
    **dict.fromkeys(json_array.FORMS, _parse_array),
    "jsonl": _parse_lines,
    "columns": _parse_lines,
    "csv": _parse_csv,
    "parquet": _parse_parquet,
}
