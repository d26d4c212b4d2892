"""Rows of a file and the line each starts at, for readers that need every row to be whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimtune.console import InputError
from slimtune.data import blocks, sources


def read(file: Path, input_format: str = "auto") -> Iterator[tuple[int, dict[str, Any]]]:
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
