"""Rows of a file and the line each starts at: JSON array, JSON Lines or CSV, any usual encoding.

Everything streams, a JSON array too: memory holds one row, not the file.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from slimtune.console import InputError, SettingsError
from slimtune.data import json_array

_CHUNK = 1 << 20
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

NumberedRow = tuple[int, dict[str, Any]]


def read(file: Path, input_format: str = "auto") -> Iterator[NumberedRow]:
    """(line, row) for every row of `file`; `input_format` is auto, json, jsonl or csv.

    `json` takes an array and one object a line alike, since both are met under that name. Raises
    SettingsError for an unknown format; InputError for a missing or empty file, and with file:line
    for what cannot be parsed.
    """
    if input_format != "auto" and input_format not in READERS:
        raise SettingsError(
            f"input format {input_format!r}: unknown",
            f"known are auto, {', '.join(READERS)}",
            "--input-format auto looks at the file's content",
        )
    if not file.is_file():
        raise InputError(
            f"{file}: no such file",
            f"looked for {file.absolute()}",
            "check the path (python finetune/create_sample_data.py makes a file to try)",
        )
    encoding = detect_encoding(file)
    first = _first_character(file, encoding)
    if not first:
        raise InputError(f"{file}: empty", "there is not one row in it", "give a file with rows")
    name = input_format if input_format != "auto" else _format_of(first)
    with file.open(encoding=encoding) as stream:  # CRLF becomes LF, inside quoted CSV texts too
        yield from READERS[name](stream, file)


def detect_encoding(file: Path) -> str:
    """By its BOM; else UTF-8 if every byte fits; else GB18030, which holds GBK and GB2312."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with file.open("rb") as stream:
        start = stream.read(_CHUNK)
        for bom, name in _BOMS.items():
            if start.startswith(bom):
                return name
        try:
            chunk = start
            while chunk:
                decoder.decode(chunk)
                chunk = stream.read(_CHUNK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return _require_gb18030(file)
    return "utf-8"


def _require_gb18030(file: Path) -> str:
    try:
        with file.open(encoding="gb18030") as stream:
            while stream.read(_CHUNK):
                pass
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: encoding unknown",
            "neither UTF-8, UTF-16 with a BOM, nor GB18030/GBK fits its bytes",
            f"save it as UTF-8, for instance: iconv -f ENCODING -t UTF-8 {file.name} -o utf8.json",
        ) from error
    return "gb18030"


def _first_character(file: Path, encoding: str) -> str:
    with file.open(encoding=encoding) as stream:
        while chunk := stream.read(_CHUNK):
            if text := chunk.lstrip():
                return text[0]
    return ""


def _format_of(first: str) -> str:
    return "json" if first in "[{" else "csv"


def _read_json(stream: TextIO, file: Path) -> Iterator[NumberedRow]:
    first = stream.read(1)
    while first.isspace():
        first = stream.read(1)
    stream.seek(0)
    yield from (_read_array if first == "[" else _read_lines)(stream, file)


def _read_lines(stream: TextIO, file: Path) -> Iterator[NumberedRow]:
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            _refuse(file, line, f"not valid JSON: {error}", "repair or delete this line")
        yield line, _object(row, file, line)


def _read_array(stream: TextIO, file: Path) -> Iterator[NumberedRow]:
    try:
        for line, row in json_array.elements(stream):
            yield line, _object(row, file, line)
    except json_array.BrokenArray as broken:
        _refuse(file, broken.line, broken.reason, broken.cure)


def _read_csv(stream: TextIO, file: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(2**31 - 1)  # the default refuses answers over 128 kB
    reader = csv.DictReader(stream, strict=True)
    line = 1
    try:
        header = len(reader.fieldnames or [])
        line = reader.line_num + 1
        for row in reader:
            if None in row:
                why = f"{header + len(row[None])} fields under a header of {header}"
                _refuse(file, line, why, 'put quotes around texts with commas: "a, b"')
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        _refuse(file, line, f"not valid CSV: {error}", 'write a quote inside a text twice: ""')


READERS: dict[str, Callable[[TextIO, Path], Iterator[NumberedRow]]] = {
    "json": _read_json,
    "jsonl": _read_lines,
    "csv": _read_csv,
}


def _object(row: Any, file: Path, line: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        kind = type(row).__name__
        _refuse(file, line, f"a row must be an object, this is a {kind}", "see --input-format json")
    return row


def _refuse(file: Path, line: int, why: str, cure: str) -> NoReturn:
    raise InputError(f"{file}:{line}: cannot be read", why, cure)
