"""The files of an input, each with what its content says: format, encoding, compression."""

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

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
_CHUNK = 1 << 20
_LOOKED_AT = 50  # lines, to tell JSON Lines with a broken first line from CSV
_TOLD = {
    "array": "json array",
    "wrapped": "json array under a key",
    "objects": "json objects one after another",
}
_UNDER_A_KEY = re.compile(r'\{\s*"([^"\\]*)"\s*:\s*\[\s*\{')
_DELIMITERS = ",;\t|"

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

    def called(self, name: str) -> "SourceFile":
        return replace(self, name=name)

    def told(self) -> dict[str, str]:
        """What the report says of it."""
        kind = _TOLD.get(self.format, self.format)
        kind += f" ({self.delimiter!r})" if self.format == "csv" else ""
        packed = ", gzip" if self.compressed else ""
        encoding = "" if self.format == "parquet" else ENCODING_NAMES[self.encoding]
        return {"file": self.name, "format": kind + packed, "encoding": encoding}


def find(path: Path, input_format: str = "auto", split: str = "") -> list[SourceFile]:
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
        return _in_folder(path, input_format, split)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file",
            f"looked for {path.absolute()}",
            "check the path (python finetune/create_sample_data.py makes a file to try)",
        )
    return [recognise(path, path.name, input_format, split)]


def _in_folder(folder: Path, input_format: str, split: str) -> list[SourceFile]:
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if file.suffix.lower() not in _SUFFIXES or not file.stat().st_size:
            _log.warning("%s: passed over, no data file", file)
            continue
        found.append(recognise(file, name, input_format, split))
    if not found:
        raise InputError(
            f"{folder}: no data file in this folder",
            f"looked for {', '.join(sorted(filter(None, _SUFFIXES)))}",
            "give a folder with rows, or one file",
        )
    return found


def recognise(file: Path, name: str, input_format: str = "auto", split: str = "") -> SourceFile:
    """What the content of one file says about how to read it."""
    with file.open("rb") as stream:
        magic = stream.read(4)
    if input_format == "parquet" or (input_format == "auto" and magic == b"PAR1"):
        return SourceFile(file, name, "parquet", split=split)
    _require_text(file)
    encoding = detect_encoding(file)
    start = _start(file, encoding)
    kind = _format_of(start) if input_format == "auto" else input_format
    if kind == "json":
        kind = "array" if start[0] == "[" else _form_of_objects(start)
    delimiter = "\t" if kind == "tsv" else _delimiter(start)
    kind = "csv" if kind == "tsv" else kind
    return SourceFile(file, name, kind, encoding, delimiter, is_compressed(file), split)


def _require_text(file: Path) -> None:
    """What people give by mistake, named; gzip is read, so look at what is inside."""
    with open_bytes(file) as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04":
        raise InputError(
            f"{file}: a zip archive or an Excel workbook",
            "rows are read from json, jsonl, csv, tsv and parquet",
            "unpack it, or save the sheet as CSV UTF-8",
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
        _, end = json.JSONDecoder().raw_decode(start)
    except ValueError:  # broken, or longer than this start
        return "wrapped" if holds_rows and not _is_object(start.split("\n", 2)[1:2]) else "jsonl"
    if holds_rows and not start[end:].strip():
        return "wrapped"
    return "objects" if "\n" in start[:end] else "jsonl"


def _is_object(lines: list[str]) -> bool:
    try:
        return any(isinstance(json.loads(line), dict) for line in lines)
    except ValueError:
        return False


def _delimiter(start: str) -> str:
    """The sign that parts most columns of the first line; texts in quotes do not count."""
    outside = "".join(start.split("\n", 1)[0].split('"')[::2])
    return max(_DELIMITERS, key=outside.count)
