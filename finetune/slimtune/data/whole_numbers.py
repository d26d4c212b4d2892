"""Integers that a gap in their column made floats: pandas writes 2 as 2.0 beside a missing value.

They are integers again where the whole column says so: every number in it is a float without a
fraction. In a CSV all are texts and `2.0` may as well be a version, so there it takes a gap too; a
text in a format that knows numbers stays what it is.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from slimtune.data.shapes import ROW_PARTS, RawRow
from slimtune.data.turns import PLACEHOLDERS

_WHOLE = re.compile(r"-?\d{1,15}\.0")
_EXACT = 2**53  # from here on a float does not hold every integer

Columns = frozenset[str]


def whole_columns(
    head: Iterable[RawRow],
    rows: Callable[[], Iterable[RawRow]],
    shape: str,
    *,
    texts: bool = False,
) -> Columns:
    """The columns that `shape` reads and whose numbers are to be integers.

    The first rows say which may be; only where one may are all `rows` read for it. `texts` says
    that the format has no numbers but in texts.
    """
    read = {name for names in ROW_PARTS[shape] for name in names}
    likely = _whole(head, read, texts=texts, gaps=False)
    return _whole(rows(), likely, texts=texts, gaps=True) if likely else likely


def with_integers(row: RawRow, columns: Columns) -> RawRow:
    """The row with the numbers of `columns` as integers."""
    if not columns:
        return row
    return {name: _integer(value) if name in columns else value for name, value in row.items()}


@dataclass
class _Seen:
    """What stands in one column."""

    floats: int = 0
    texts: int = 0
    gaps: int = 0
    others: int = 0  # numbers with a fraction, integers; beside texts, any other text

    def add(self, value: Any) -> None:
        if value is None or (isinstance(value, str) and value.strip() in ("", *PLACEHOLDERS)):
            self.gaps += 1
        elif isinstance(value, str):
            whole = _WHOLE.fullmatch(value)
            self.texts += bool(whole)
            self.others += not whole
        elif isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
            self.floats += 1
        elif isinstance(value, int | float):
            self.others += 1


def _whole(
    rows: Iterable[RawRow], columns: Collection[str], *, texts: bool, gaps: bool
) -> Columns:
    seen = {name: _Seen() for name in columns}
    for row in rows:
        for name, column in seen.items():
            column.add(row.get(name))
    return frozenset(
        name
        for name, column in seen.items()
        if not column.others
        and (column.floats or (texts and column.texts and (column.gaps or not gaps)))
    )


def _integer(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value[:-2] if isinstance(value, str) and _WHOLE.fullmatch(value) else value
