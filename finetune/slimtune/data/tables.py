"""Rows as CSV for people: opens in Excel with Chinese intact."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_csv(file: Path, rows: Sequence[Mapping[str, str]], encoding: str = "utf-8-sig") -> None:
    """One row a line under the first row's keys; UTF-8 with the BOM that Excel needs."""
    with file.open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
