"""A file in blocks of whole rows, which a worker parses without knowing the rest of the file.

Blocks of one file in order hold all its rows in order. Memory holds a block, not the file.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from slimtune.data import json_array
from slimtune.data.columnar import cut_columnar, parse_columnar
from slimtune.data.delimited import cut_table, parse_table
from slimtune.data.encodings import ENCODING_NAMES, NO_TEXT, open_text
from slimtune.data.json_array import DECODER, TWICE
from slimtune.data.json_forms import table_rows
from slimtune.data.source_file import AROUND, BINARY, BadLine, Block, NumberedRow, SourceFile
from slimtune.data.workbooks import cut_workbook, parse_workbook
from slimtune.errors import InputError

_GLUE = re.compile(r"[ \t\r,\ufeff]*")
BLOCK_BYTES = 1 << 20  # characters; small enough that several in flight weigh little


def cut(source: SourceFile) -> Iterator[Block]:
    """The blocks of a source; InputError with file:line where no further row can be found."""
    if source.format == "xlsx":
        yield from cut_workbook(source, BLOCK_BYTES)
        return
    if source.format in BINARY:
        yield from cut_columnar(source)
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
        text = text.strip(AROUND)
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


def _cut_csv(stream: TextIO, source: SourceFile) -> Iterator[Block]:
    yield from cut_table(stream, source, BLOCK_BYTES)


def _object(row: Any) -> dict[str, Any] | BadLine:
    if isinstance(row, dict):
        if TWICE not in row:
            return row
        name = row.pop(TWICE)
        text = json.dumps(row, ensure_ascii=False)
        return BadLine(text, f'"{name}" stands twice in the row')
    text = json.dumps(row, ensure_ascii=False)
    return BadLine(text, f"a row must be an object, this is a {type(row).__name__}")


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
    "csv": parse_table,
    "parquet": parse_columnar,
    "arrow": parse_columnar,
    "xlsx": parse_workbook,
}
