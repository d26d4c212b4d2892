"""The head of a table, whatever it lies in: the lines above its header, and the columns' names."""

import re
from collections.abc import Sequence

from slimtune.data.columns import is_usual
from slimtune.data.source_file import AROUND, BadLine
from slimtune.errors import InputError

# A number, an amount, a date or a time: what stands in columns, seldom above them.
_FIGURE = re.compile(r"[-+]?[\d.,:/ %$€¥年月日-]*\d[\d.,:/ %$€¥年月日-]*")
_ENDS = (".", "。", "!", "！", "?", "？")  # of sentences
_LONG = 60  # characters that no column's name has


def column_names(fields: Sequence[str], where: str) -> tuple[str, ...]:
    """The names of the columns; blank ones get a number. InputError where one stands twice."""
    names = [cell(field) or f"column {place}" for place, field in enumerate(fields, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        places = [str(place) for place, name in enumerate(names, start=1) if name == twice]
        raise InputError(
            f"{where}: the header has {twice!r} twice",
            f"columns {' and '.join(places)} bear it, and one of the two would be lost in silence",
            "give each column a name of its own",
        )
    return tuple(names)


def numbered_names(fields: Sequence[str]) -> tuple[str, ...]:
    """The names of a table without a header."""
    return tuple(f"column {place}" for place, _ in enumerate(fields, start=1))


def cell(text: str) -> str:
    return text.strip(AROUND)


def lines_above(widths: Sequence[int]) -> int:
    """How many lines stand above the header, by the filled cells of each of the first lines.

    A title is one cell above a table of several; a blank line is none.
    """
    above = 0
    while above < len(widths) - 1 and widths[above] < 2 <= max(widths[above:]):
        above += 1
    return above


def is_data(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Whether the first row of a table is one of its rows: no header was written.

    A name that people give to columns says no, and so does a text above figures. A figure or a
    sentence says yes.
    """
    first = [cell(text) for text in first]
    if not below or any(map(is_usual, first)):
        return False
    for place, text in enumerate(first):
        values = [cell(row[place]) for row in below if place < len(row) and cell(row[place])]
        if text and values and all(map(_FIGURE.fullmatch, values)) and not _FIGURE.fullmatch(text):
            return False
    return any(
        text.endswith(_ENDS) or len(text) > _LONG or _FIGURE.fullmatch(text) for text in first
    )


def named_row(fields: Sequence[str], header: tuple[str, ...]) -> dict[str, str] | BadLine:
    """The cells of a table's row by name; a BadLine for one that is wider than the header."""
    if len(fields) > len(header):
        why = f"{len(fields)} fields under a header of {len(header)}"
        return BadLine(",".join(fields), why)
    if tuple(map(cell, fields)) == header:
        return BadLine(",".join(fields), "the header once more: files put one behind the other")
    return dict(zip(header, fields, strict=False))
