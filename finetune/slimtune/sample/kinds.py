"""The sample rows in the shapes and encodings that people bring, each written by one function.

A new kind is one function `as_NAME` here and one entry of config/catalogues.yaml.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slimtune.config.catalogues import bind, facts


def write_rows_csv(
    file: Path, rows: Sequence[Mapping[str, str]], encoding: str = "utf-8-sig"
) -> None:
    """One row a line under the first row's keys; UTF-8 with the BOM that Excel needs."""
    with file.open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


SampleRow = dict[str, str]


def as_json(file: Path, rows: Sequence[SampleRow]) -> None:
    """One array of Alpaca rows."""
    file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def as_csv(file: Path, rows: Sequence[SampleRow]) -> None:
    """A table that opens in Excel with its Chinese intact (UTF-8 with BOM)."""
    write_rows_csv(file, rows)


def as_gbk(file: Path, rows: Sequence[SampleRow]) -> None:
    """The same table as a Chinese Windows saves it."""
    write_rows_csv(file, rows, encoding="gbk")


def as_jsonl(file: Path, rows: Sequence[SampleRow]) -> None:
    """One Alpaca row a line."""
    write_lines(file, [json.dumps(row, ensure_ascii=False) for row in rows])


def as_sharegpt(file: Path, rows: Sequence[SampleRow]) -> None:
    """One array of ShareGPT conversations, which say the same as the Alpaca rows."""
    conversations = [_sharegpt(row) for row in rows]
    file.write_text(json.dumps(conversations, ensure_ascii=False, indent=1), encoding="utf-8")


def write_lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def question(row: SampleRow) -> str:
    """Instruction and input as the one thing that is asked."""
    return "\n\n".join(filter(None, (row["instruction"], row["input"])))


def _sharegpt(row: SampleRow) -> dict[str, object]:
    turns = [
        {"from": "human", "value": question(row)},
        {"from": "gpt", "value": row["output"]},
    ]
    kept = {name: row[name] for name in ("fact", "family", "language")}
    return {"conversations": turns, **kept}


SAMPLE_FILES: dict[str, str] = facts("sample_kinds", "file")
# Of what is written on demand: csv comes with every sample, and messy.py plants the faults.
SAMPLE_KINDS: dict[str, Callable[[Path, Sequence[SampleRow]], None]] = bind(
    "sample_kinds", globals(), prefix="as_", without=("csv", "messy")
)
