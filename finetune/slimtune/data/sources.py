"""The files of an input, each with what its content says: format, encoding, compression."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import require_fetched
from slimtune.config.catalogues import names
from slimtune.console import InputError, SettingsError
from slimtune.data.encodings import (
    ENCODING_NAMES,
    detect_encoding,
    is_compressed,
    open_bytes,
    open_text,
)
from slimtune.data.shapes import KNOWN

FILE_FORMATS = names("file_formats")
_SUFFIXES = {"", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".gz"}
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_CHUNK = 1 << 20
_LOOKED_AT = 50  # lines, to tell JSON Lines with a broken first line from CSV
_TOLD = {
    "array": "json array",
    "wrapped": "json array under a key",
    "objects": "json objects one after another",
    "columns": "one json object of columns (pandas)",
}
# What a file begins with that holds no rows, what it is, and what to do.
_NO_ROWS = {
    b"pk\x03\x04": (
        "a zip archive or an Excel workbook",
        "unpack it, or save the sheet as CSV UTF-8",
    ),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook (.xls)", "save the sheet as CSV UTF-8"),
    b"<!doctype html": ("a web page", "download the file itself, not the page that shows it"),
    b"<html": ("a web page", "download the file itself, not the page that shows it"),
    b"%pdf": ("a PDF", "copy its questions and answers into a table, saved as CSV UTF-8"),
}
_UNDER_A_KEY = re.compile(r'\{\s*"([^"\\]*)"\s*:\s*\[\s*\{')
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=(.|\\t)", re.IGNORECASE)  # what Excel writes for itself

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """One file: `name` is what rows say they come from; `format` is array, wrapped (an array under
    a key), objects (one after another, over several lines each), jsonl, csv or parquet.

    `split` is the split its rows are given to, "" if a hash decides.
    """

    file: Path
    name: str
    format: str
    encoding: str = "utf-8"
    delimiter: str = ","
    compressed: bool = False
    split: str = ""
    above: int = 0  # lines of a table before its header
    quoted: bool = True  # whether a quote opens a text; in many TSV files it is a sign like others

    def called(self, name: str) -> "SourceFile":
        return replace(self, name=name)

    def told(self) -> dict[str, str]:
        """What the report says of it."""
        kind = _TOLD.get(self.format, self.format)
        kind += f" ({self.delimiter!r})" if self.format == "csv" else ""
        packed = ", gzip" if self.compressed else ""
        encoding = "" if self.format == "parquet" else ENCODING_NAMES[self.encoding]
        return {"file": self.name, "format": kind + packed, "encoding": encoding}


def find(
    path: Path, input_format: str = "auto", split: str = "", encoding: str = "auto"
) -> list[SourceFile]:
    """The source of a file, or those of all data files in a folder, sorted by name.

    Raises SettingsError for an unknown format, InputError for what is missing, empty or in no
    known encoding.
    """
    if input_format != "auto" and input_format not in FILE_FORMATS:
        raise SettingsError(
            f"input format {input_format!r}: unknown",
            f"known are auto, {', '.join(FILE_FORMATS)}",
            "--input-format auto looks at the file's content",
        )
    if path.is_dir():
        return _in_folder(path, input_format, split, encoding)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file",
            f"looked for {path.absolute()}",
            "check the path (python finetune/create_sample_data.py makes a file to try)",
        )
    return [recognise(path, path.name, input_format, split, encoding)]


def _in_folder(folder: Path, input_format: str, split: str, encoding: str) -> list[SourceFile]:
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if file.name in _METADATA:
            continue  # what a cloned data set or `save_to_disk` keeps beside the rows
        if file.suffix.lower() not in _SUFFIXES or not file.stat().st_size:
            _log.warning("%s: passed over, no data file", file)
            continue
        found.append(recognise(file, name, input_format, split, encoding))
    if not found:
        raise InputError(
            f"{folder}: no data file in this folder",
            f"looked for {', '.join(sorted(filter(None, _SUFFIXES)))}",
            "give a folder with rows, or one file",
        )
    return found


def recognise(
    file: Path,
    name: str,
    input_format: str = "auto",
    split: str = "",
    encoding: str = "auto",
) -> SourceFile:
    """What the content of one file says about how to read it."""
    require_fetched(file)
    with file.open("rb") as stream:
        magic = stream.read(4)
    if input_format == "parquet" or (input_format == "auto" and magic == b"PAR1"):
        return SourceFile(file, name, "parquet", split=split)
    _require_text(file)
    encoding = detect_encoding(file, encoding)
    start = _start(file, encoding)
    kind = _format_of(start) if input_format == "auto" else input_format
    if kind == "json":
        kind = "array" if start[0] == "[" else _form_of_objects(start)
    table = _table(start, "\t" if kind == "tsv" else "") if kind in ("csv", "tsv") else {}
    kind = "csv" if kind == "tsv" else kind
    packed = is_compressed(file)
    return SourceFile(file, name, kind, encoding, compressed=packed, split=split, **table)


def _require_text(file: Path) -> None:
    """What people give by mistake, named; gzip is read, so look at what is inside."""
    with open_bytes(file) as stream:
        start = stream.read(64)
    for magic, (what, cure) in _NO_ROWS.items():
        if start.lstrip().lower().startswith(magic):
            raise InputError(
                f"{file}: {what}", "rows are read from json, jsonl, csv, tsv and parquet", cure
            )


def _start(file: Path, encoding: str) -> str:
    """The first megabyte of text from its first sign on; InputError if there is none."""
    with open_text(file, encoding) as stream:
        while chunk := stream.read(_CHUNK):
            if text := chunk.lstrip():
                return text
    raise InputError(f"{file}: empty", "there is not one row in it", "give a file with rows")


def _format_of(start: str) -> str:
    if start[0] in "[{":
        return "json"
    lines = [line for line in start.split("\n", _LOOKED_AT)[:_LOOKED_AT] if line.strip()]
    objects = sum(line.lstrip().startswith("{") for line in lines)
    return "jsonl" if objects * 2 > len(lines) else "csv"


def _form_of_objects(start: str) -> str:
    """How a text that begins with { holds its rows: jsonl, wrapped or objects.

    A list under a name that rows have themselves ("messages") is a row's, not the file's.
    """
    key = _UNDER_A_KEY.match(start)
    holds_rows = key and key[1].lower() not in KNOWN
    try:
        found, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):  # broken, or longer than this start
        return "wrapped" if holds_rows and not _is_object(start.split("\n", 2)[1:2]) else "jsonl"
    alone = not start[end:].strip()
    if alone and table_rows(found) is not None:
        return "columns"
    if holds_rows and alone:
        return "wrapped"
    return "objects" if "\n" in start[:end] else "jsonl"


def table_rows(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table that is one object, None for any other object.

    As pandas writes it: {column: [value, ...]}, {column: {"0": value, ...}}, {"0": row, ...}, and
    {"columns": [...], "data": [[value, ...], ...]}.
    """
    if {"columns", "data"} <= value.keys() <= {"columns", "data", "index"}:
        names, data = value["columns"], value["data"]
        listed = isinstance(names, list) and isinstance(data, list)
        if not listed or not all(isinstance(cells, list) for cells in data):
            return None
        return [dict(zip(map(str, names), cells, strict=False)) for cells in data]
    cells = list(value.values())
    lists = len(cells) > 1 and all(isinstance(one, list) for one in cells)
    if lists and _is_named(value) and len(set(map(len, cells))) == 1 and not _holds_turns(cells):
        return [dict(zip(value, row, strict=True)) for row in zip(*cells, strict=True)]
    if not cells or not all(isinstance(one, dict) and one for one in cells):
        return None
    if _is_named(value) and all(one.keys() == cells[0].keys() for one in cells):
        return [{name: value[name][place] for name in value} for place in cells[0]]
    return cells if len(cells) > 1 and all(map(_is_named, cells)) else None


def _is_named(row: Mapping[str, Any]) -> bool:
    """Whether two of its names are ones that a row has."""
    return sum(str(name).lower() in KNOWN for name in row) > 1


def _holds_turns(cells: Sequence[list[Any]]) -> bool:
    return any(isinstance(one, dict | list) for column in cells for one in column)


def _is_object(lines: list[str]) -> bool:
    try:
        return any(isinstance(json.loads(line), dict) for line in lines)
    except ValueError:
        return False


def _table(start: str, delimiter: str) -> dict[str, Any]:
    """How a table is to be read: its delimiter, the lines above its header, whether with quotes."""
    lines = start.split("\n", _LOOKED_AT)[:_LOOKED_AT]
    told = _SEPARATOR_LINE.fullmatch(lines[0].strip())
    above = 1 if told else 0
    if told:
        delimiter = told[1].replace("\\t", "\t")
    delimiter = delimiter or _delimiter(lines[above:])
    widths = [_filled(line, delimiter) for line in lines[above:]]
    # A title is one cell above a table of several.
    while above < len(lines) - 1 and widths[0] < 2 <= max(widths, default=0):
        above, widths = above + 1, widths[1:]
    stray = delimiter == "\t" and _has_stray_quotes(lines[above:])
    return {"delimiter": delimiter, "above": above, "quoted": not stray}


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
