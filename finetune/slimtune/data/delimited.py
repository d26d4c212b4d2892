"""Tables of text, CSV and TSV: how one is to be read, its blocks, and the rows of a block."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TextIO

from slimtune.data.source_file import BadLine, Block, NumberedRow, SourceFile
from slimtune.data.table_heads import (
    column_names,
    is_data,
    lines_above,
    named_row,
    numbered_names,
)
from slimtune.errors import InputError

_LOOKED_AT = 50  # lines
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=(.|\\t)", re.IGNORECASE)  # what Excel writes for itself

csv.field_size_limit(2**31 - 1)  # the default refuses answers over 128 kB


def table_form(start: str, delimiter: str = "") -> dict[str, Any]:
    """How a table is to be read: its delimiter, the lines above its header, whether with quotes,
    and its first row where that is no header."""
    lines = start.split("\n", _LOOKED_AT)[:_LOOKED_AT]
    told = _SEPARATOR_LINE.fullmatch(lines[0].strip())
    above = 1 if told else 0
    if told:
        delimiter = told[1].replace("\\t", "\t")
    delimiter = delimiter or _delimiter(lines[above:])
    above += lines_above([_filled(line, delimiter) for line in lines[above:]])
    quoted = delimiter != "\t" or not _has_stray_quotes(lines[above:])
    form = {"delimiter": delimiter, "above": above, "quoted": quoted}
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader(lines[above:], delimiter=delimiter, quoting=quoting)
    first, *below = list(islice(filter(None, rows), _LOOKED_AT)) or [[]]
    return form | ({"headless": tuple(first)} if is_data(first, below) else {})


def _has_stray_quotes(lines: Sequence[str]) -> bool:
    """Whether every line of a TSV whose quotes do not balance is a whole row all the same.

    Where they open texts over several lines, the first or the last of these lines has fewer tabs.
    """
    odd = [line for line in lines if line.count('"') % 2]
    return bool(odd) and all(line.count("\t") == lines[0].count("\t") for line in odd)


def _filled(line: str, delimiter: str) -> int:
    """Cells with something in them."""
    return sum(bool(cell.strip()) for cell in line.split(delimiter))


def _delimiter(lines: Sequence[str]) -> str:
    """The sign that parts most columns of the header; texts in quotes do not count.

    The header is the first line with any of them: a title above it has none.
    """
    for line in lines:
        outside = "".join(line.split('"')[::2])
        best = max(_DELIMITERS, key=outside.count)
        if outside.count(best):
            return best
    return _DELIMITERS[0]


def cut_table(stream: TextIO, source: SourceFile, size: int) -> Iterator[Block]:
    """Only a reader knows whether a line's end stands in quotes: so each row is read here too."""
    lines = _Remembered(stream)
    reader = csv.reader(lines, strict=True, **_dialect(source))
    header = _header(reader, source)
    lines.taken()
    line = reader.line_num + 1
    while _next(reader, source) is not None:
        if lines.size >= size:
            yield Block(source, line, lines.taken(), header)
            line = reader.line_num + 1
    if text := lines.taken():
        yield Block(source, line, text, header)


def _dialect(source: SourceFile) -> dict[str, Any]:
    quoting = csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE
    return {"delimiter": source.delimiter, "quoting": quoting}


def _header(reader: Any, source: SourceFile) -> tuple[str, ...]:
    """The names of the columns. `source.above` lines come before them: `sep=;`, a title, blanks."""
    fields: list[str] = []
    while reader.line_num < source.above or not (fields or source.headless):
        found = _next(reader, source)
        if found is None:
            return ()
        fields = found if reader.line_num > source.above else []
    if source.headless:
        return numbered_names(source.headless)
    return column_names(fields, f"{source.file}:{reader.line_num}")


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


def parse_table(block: Block) -> Iterator[NumberedRow]:
    """(line, row) of each row of a block; a BadLine in place of what is no row."""
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
    if fields[0].startswith("\ufeff"):
        fields = [fields[0].lstrip("\ufeff"), *fields[1:]]
    return named_row(fields, header)
