"""The files of an input, each with what its content says: format, encoding, compression."""

import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from slimtune.artifacts.files import json_or_none, require_fetched
from slimtune.config.catalogues import names
from slimtune.config.data import Data
from slimtune.config.inputs import split_inputs
from slimtune.console import near
from slimtune.data.columnar import ARROW, PARQUET
from slimtune.data.delimited import table_form
from slimtune.data.encodings import detect_encoding, is_compressed, open_bytes, open_text
from slimtune.data.json_forms import form_of, format_of
from slimtune.data.source_file import BINARY, SourceFile
from slimtune.data.workbooks import ZIP, workbook_form
from slimtune.errors import InputError, SettingsError

FILE_FORMATS = names("file_formats")
_SUFFIXES = {
    "",
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".txt",
    ".parquet",
    ".arrow",
    ".xlsx",
    ".gz",
}
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
# What data sets call the rows that nobody trains on.
_SPLITS = dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation")
_SPLITS["test"] = "test"
_MOST_COPIES = 1000
_CHUNK = 1 << 20
# What a file begins with that holds no rows, what it is, and what to do.
_NO_ROWS = {
    b"\xd0\xcf\x11\xe0": (
        "an old Excel workbook (.xls), or one with a password",
        "save it as .xlsx without a password, or the sheet as CSV UTF-8",
    ),
    b"pk\x03\x04": ("a zip archive in a gzip archive", "unpack it"),
    b"<!doctype html": ("a web page", "download the file itself, not the page that shows it"),
    b"<html": ("a web page", "download the file itself, not the page that shows it"),
    b"%pdf": ("a PDF", "copy its questions and answers into a table, saved as CSV UTF-8"),
}

_log = logging.getLogger(__name__)


def find_splits(settings: Data) -> tuple[Data, list[SourceFile]]:
    """The input's files, then those given for validation and test; names are told apart.

    A split that the input has as one of its own (`DatasetDict.save_to_disk`) counts as given: in
    the settings too, for the rest then gives none.
    """
    found, given = find_inputs(settings.input, settings.input_format, settings.encoding), {}
    for split in ("validation", "test"):
        path = getattr(settings, f"{split}_input")
        own = next((one.file.parent for one in found if one.split == split), None)
        if own and path:
            found = [one for one in found if one.split != split]
            _log.warning("caution: %s: left out, data.%s_input is given", near(own), split)
        elif own:
            given[f"{split}_input"] = own
            _log.info("%s: the %s rows, as the data set has it", near(own), split)
        if path:
            found += find(path, settings.input_format, split, settings.encoding)
    twice = {name for name, count in Counter(one.name for one in found).items() if count > 1}
    named = [one.called(f"{one.split}:{one.name}") if one.name in twice else one for one in found]
    return settings.model_copy(update=given), named


def find_inputs(
    written: Path | str, input_format: str = "auto", encoding: str = "auto"
) -> list[SourceFile]:
    """The sources of one input, or of several with commas and weights, in that order.

    Raises what `find` raises, and SettingsError for a weight that means nothing or a file that
    stands there twice.
    """
    inputs = split_inputs(written)
    if not inputs:
        raise SettingsError(
            "data.input: empty", "a file or folder with rows is needed", "name it: --input FILE"
        )
    found: dict[Path, SourceFile] = {}
    for one in inputs:
        if not 0 < one.weight <= _MOST_COPIES:
            raise SettingsError(
                f"data.input: {one.path.name}:{one.weight:g}: no weight",
                f"a weight is above 0 and at most {_MOST_COPIES}",
                f"{one.path.name}:2 repeats the rows, {one.path.name}:0.5 draws half of them",
            )
        for source in find(one.path, input_format, encoding=encoding):
            if source.file.resolve() in found:
                raise SettingsError(
                    f"data.input: {source.file} stands there twice",
                    "its rows would all be duplicates of themselves",
                    f"name it once; {source.file.name}:2 repeats its rows",
                )
            weight = 1.0 if source.split else one.weight  # it is for what is trained on
            found[source.file.resolve()] = replace(source, weight=weight)
    return _told_apart(list(found.values()))


def _told_apart(found: list[SourceFile]) -> list[SourceFile]:
    """Sources of one name get their folders before it, as many as part them."""
    twice = {name for name, count in Counter(one.name for one in found).items() if count > 1}
    if not twice:
        return found
    files = [one.file.resolve() for one in found]
    try:
        above = len(Path(os.path.commonpath([file.parent for file in files])).parts)
    except ValueError:  # on different drives
        above = 0
    return [
        one.called("/".join(file.parts[above:])) if one.name in twice else one
        for one, file in zip(found, files, strict=True)
    ]


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
    found, own = [], _own_splits(folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if file.name in _METADATA:
            continue  # what a cloned data set or `save_to_disk` keeps beside the rows
        if file.suffix.lower() not in _SUFFIXES or not file.stat().st_size:
            _log.warning("%s: passed over, no data file", file)
            continue
        shards = _saved_shards(file.parent) if file.suffix == ".arrow" else None
        if shards is not None and file.name not in shards:
            continue  # what `datasets` keeps of a `map` or `filter`: the same rows again
        role = split or own.get(name.partition("/")[0], "")
        found.append(recognise(file, name, input_format, role, encoding))
    if not found:
        raise InputError(
            f"{folder}: no data file in this folder",
            f"looked for {', '.join(sorted(filter(None, _SUFFIXES)))}",
            "give a folder with rows, or one file",
        )
    return found


def _own_splits(folder: Path) -> dict[str, str]:
    """{folder below it: "validation" or "test"} of a `DatasetDict` that `datasets` has saved."""
    listed = (json_or_none(folder / "dataset_dict.json") or {}).get("splits")
    names = listed if isinstance(listed, list) else []
    return {name: _SPLITS[name] for name in names if isinstance(name, str) and name in _SPLITS}


def _saved_shards(folder: Path) -> list[str] | None:
    """The .arrow files that `datasets` has saved in a folder, None where it has not; InputError
    where one is missing."""
    state = json_or_none(folder / "state.json") or {}
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        return None
    names = [str(one.get("filename")) for one in listed]
    present = {file.name for file in folder.iterdir()}
    missing = next((name for name in names if name not in present), None)
    if missing is not None:
        raise InputError(
            f"{folder}: {missing!r} is missing",
            f"state.json lists {len(names)} files of rows",
            "copy the folder again, whole",
        )
    return names


def recognise(
    file: Path,
    name: str,
    input_format: str = "auto",
    split: str = "",
    encoding: str = "auto",
) -> SourceFile:
    """What the content of one file says about how to read it."""
    require_fetched(file)
    kind = _binary_format(file) if input_format == "auto" else input_format
    if kind in BINARY:
        form = workbook_form(file) if kind == _binary_format(file) == "xlsx" else {}
        return SourceFile(file, name, kind, split=split, **form)
    _require_text(file)
    encoding = detect_encoding(file, encoding)
    start = _start(file, encoding)
    kind = format_of(start) if input_format == "auto" else input_format
    kind = form_of(start) if kind == "json" else kind
    table = table_form(start, "\t" if kind == "tsv" else "") if kind in ("csv", "tsv") else {}
    kind = "csv" if kind == "tsv" else kind
    packed = is_compressed(file)
    return SourceFile(file, name, kind, encoding, compressed=packed, split=split, **table)


def _binary_format(file: Path) -> str:
    """parquet, arrow or xlsx by the first bytes, "" for what may be text."""
    with file.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(PARQUET):
        return "parquet"
    if start.startswith(ARROW):
        return "arrow"
    return "xlsx" if start.startswith(ZIP) else ""


def _require_text(file: Path) -> None:
    """What people give by mistake, named; gzip is read, so look at what is inside."""
    with open_bytes(file) as stream:
        start = stream.read(64)
    for magic, (what, cure) in _NO_ROWS.items():
        if start.lstrip().lower().startswith(magic):
            raise InputError(
                f"{file}: {what}", f"rows are read from {', '.join(FILE_FORMATS)}", cure
            )


def _start(file: Path, encoding: str) -> str:
    """The first megabyte of text from its first sign on; InputError if there is none."""
    with open_text(file, encoding) as stream:
        while chunk := stream.read(_CHUNK):
            if text := chunk.lstrip():
                return text
    raise InputError(f"{file}: empty", "there is not one row in it", "give a file with rows")
