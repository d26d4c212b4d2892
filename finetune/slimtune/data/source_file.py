"""A file of the input, and the blocks of whole rows that it is cut into: what readers hand on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimtune.data.encodings import ENCODING_NAMES

AROUND = " \t\r\n\ufeff"  # a byte order mark stands where files were put one behind the other
_TOLD = {
    "array": "json array",
    "wrapped": "json array under a key",
    "objects": "json objects one after another",
    "columns": "one json object of columns (pandas)",
}
BINARY = ("parquet", "arrow", "xlsx")


@dataclass(frozen=True)
class SourceFile:
    """One file: `name` is what rows say they come from; `format` is array, wrapped (an array under
    a key), objects (one after another, over several lines each), jsonl, columns (a table that is
    one object), csv, parquet, arrow or xlsx.

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
    headless: tuple[str, ...] = ()  # the first row of a table, where that is data and no header
    sheet: str = ""  # the one of a workbook that is read
    weight: float = 1.0  # how often each of its rows is used

    def called(self, name: str) -> "SourceFile":
        return replace(self, name=name)

    def told(self) -> dict[str, str]:
        """What the report says of it."""
        kind = _TOLD.get(self.format, self.format)
        kind += f" ({self.delimiter!r})" if self.format == "csv" else ""
        kind += f" (sheet {self.sheet!r})" if self.sheet else ""
        kind += ", no header" if self.headless else ""
        packed = ", gzip" if self.compressed else ""
        encoding = "" if self.format in BINARY else ENCODING_NAMES[self.encoding]
        return {"file": self.name, "format": kind + packed, "encoding": encoding}


@dataclass(frozen=True)
class Block:
    """Whole rows of a source: their text (an arrow batch, a list of a workbook's rows) and the
    first one's line."""

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
