"""Workbooks of spreadsheets (.xlsx): which sheet has the rows, and what a cell says as JSON.

openpyxl reads them, row by row; it is asked for where a workbook is given, and nowhere else.
"""

import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, time
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimtune.data.source_file import BadLine, Block, NumberedRow, SourceFile
from slimtune.data.table_heads import cell, column_names, is_data, lines_above, numbered_names
from slimtune.errors import InputError, ResourceError, SlimTuneError
from slimtune.packages import pip_line

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

ZIP = b"PK\x03\x04"
_LOOKED_AT = 50  # rows
_LAST_ROW = 1_048_576  # that a sheet can have: a larger number in a file is damage
_DIGITS = 15  # of a number that a spreadsheet shows: 0.1 + 0.2 is stored with 17
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")  # how the format writes a carriage return in a text
# A file of a zip archive -> what the archive is, and what to do; None for what is read here.
_KINDS: dict[str, tuple[str, str] | None] = {
    "xl/workbook.xml": None,
    "xl/workbook.bin": ("a binary Excel workbook (.xlsb)", "save it as .xlsx or as CSV UTF-8"),
    "word/document.xml": ("a Word document", "put its rows into a table, saved as CSV UTF-8"),
    "content.xml": ("an OpenDocument file", "save the sheet as .xlsx or as CSV UTF-8"),
}

_log = logging.getLogger(__name__)

Values = list[Any]  # of a row's cells: text, number, true or false, None


def require_workbook(file: Path) -> None:
    """InputError for an archive that is no workbook, by what lies in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(file, error) from error
    kinds = [_KINDS[name] for name in _KINDS if name in found]
    if None in kinds:
        return
    what, cure = (*kinds, ("a zip archive", "unpack it, and give what lies in it"))[0]
    raise InputError(f"{file}: {what}", "of archives only workbooks (.xlsx) are read", cure)


def workbook_form(file: Path) -> dict[str, Any]:
    """How a workbook is to be read: its sheet, the rows above the header, and the first row where
    that is no header. The first sheet that holds a table counts, hidden ones last."""
    require_workbook(file)
    with _opened(file) as book:
        sheets = sorted(book.worksheets, key=lambda sheet: sheet.sheet_state != "visible")
        heads = {sheet.title: _head(sheet) for sheet in sheets}
        tables = [name for name, head in heads.items() if _is_table(head)]
        tables = tables or [name for name, head in heads.items() if any(map(_filled, head))]
    if not tables:
        raise InputError(f"{file}: empty", "no sheet has a row in it", "give a file with rows")
    sheet, *others = tables
    if others:
        _log.warning(
            "%s: sheet %r is read; those that hold tables too are not: %s (save each as a file)",
            *(file, sheet, ", ".join(map(repr, others))),
        )
    head = heads[sheet]
    _require_computed(file, sheet, head)
    above = lines_above(list(map(_filled, head)))
    first, *below = [row for row in map(_texts, head[above:]) if any(row)]
    form = {"sheet": sheet, "above": above}
    return form | ({"headless": tuple(first)} if is_data(first, below) else {})


def cut_workbook(source: SourceFile, size: int) -> Iterator[Block]:
    """Blocks of (row number, values) of the sheet, of about `size` characters; blank rows none."""
    with _opened(source.file) as book:
        numbered = enumerate(_rows(book[source.sheet]), start=1)
        rows = ((line, row) for line, row in numbered if line > source.above and _filled(row))
        header = numbered_names(source.headless)
        if not source.headless:
            line, names = next(rows, (0, []))
            header = column_names(_texts(names), f"{source.file}:{line}")
        pending: list[tuple[int, Values]] = []
        characters = 0
        for line, row in rows:
            pending.append((line, row))
            characters += sum(len(str(value)) for value in row)
            if characters >= size:
                yield Block(source, pending[0][0], pending, header)
                pending, characters = [], 0
        if pending:
            yield Block(source, pending[0][0], pending, header)


def parse_workbook(block: Block) -> Iterator[NumberedRow]:
    """(row number, row) of each row of a block; cells beside the header's have a number as name."""
    for line, values in block.rows:
        texts = _texts(values)
        if tuple(map(cell, texts)) == block.header:
            yield line, BadLine(",".join(texts), "the header once more: tables put together")
        else:
            names = (*block.header, *numbered_names(values)[len(block.header) :])
            yield line, dict(zip_longest(names, values))


@contextmanager
def _opened(file: Path, *, computed: bool = True) -> Iterator["Workbook"]:
    """The workbook, with what its formulas came to or as formulas; InputError for a damaged one."""
    try:
        import openpyxl
    except ImportError as error:
        raise ResourceError(
            f"{file}: an Excel workbook, and openpyxl, which reads it, is not installed",
            "it is an optional dependency",
            f"{pip_line('openpyxl')} (or save the sheet as CSV UTF-8)",
        ) from error
    try:
        with file.open("rb") as stream:  # given a path, openpyxl believes the name
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of styles and such, which nobody here asks for
                book = openpyxl.load_workbook(stream, read_only=True, data_only=computed)
            yield book
    except SlimTuneError:
        raise
    except Exception as error:  # openpyxl answers a damaged file with whatever it trips over
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file}: cannot be read",
        f"not a whole Excel workbook: {(str(error) or type(error).__name__).splitlines()[0][:200]}",
        "open it in a spreadsheet program and save it again, or copy it again",
    )


def _rows(sheet: "Worksheet") -> Iterator[Values]:
    sheet.reset_dimensions()  # which some programs write wrong: then one cell would be all
    for row in sheet.iter_rows(max_row=_LAST_ROW):
        yield [_value(one.value, one.number_format if one.value is not None else "") for one in row]


def _head(sheet: "Worksheet") -> list[Values]:
    return list(islice(_rows(sheet), _LOOKED_AT))


def _is_table(head: list[Values]) -> bool:
    return sum(_filled(row) > 1 for row in head) > 1


def _filled(row: Values) -> int:
    """Cells with something in them."""
    return sum(bool(text.strip()) for text in _texts(row))


def _texts(row: Values) -> list[str]:
    return ["" if value is None else str(value) for value in row]


def _value(value: Any, number_format: str) -> Any:
    """A cell as a reader of the sheet sees it: 15 % and not 0.15, a day without its midnight."""
    if isinstance(value, str):
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value, number_format)
    if isinstance(value, datetime) and value.time() == time():
        return str(value.date())
    return str(value)


def _number(value: float, number_format: str) -> Any:
    if "%" in number_format:
        decimals = re.search(r"\.(0+)", number_format)
        return f"{value:.{len(decimals[1]) if decimals else 0}%}"
    rounded = float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
    whole = isinstance(rounded, float) and rounded.is_integer() and abs(rounded) < 10**_DIGITS
    return int(rounded) if whole else rounded


def _require_computed(file: Path, sheet: str, head: list[Values]) -> None:
    """InputError for formulas whose values were never stored: a program wrote them and no
    spreadsheet has computed them yet. Their cells would pass for empty ones."""
    with _opened(file, computed=False) as book:
        told = book[sheet]
        told.reset_dimensions()
        rows = list(told.iter_rows(max_row=len(head)))
    for line, (row, values) in enumerate(zip(rows, head, strict=False), start=1):
        for one, value in zip(row, values, strict=False):
            if value is None and one.data_type == "f":
                raise InputError(
                    f"{file}:{line}: a formula without its value: {str(one.value)[:60]}",
                    f"no program has computed sheet {sheet!r} since it was written",
                    "open it in a spreadsheet program and save it, or save the sheet as CSV UTF-8",
                )
