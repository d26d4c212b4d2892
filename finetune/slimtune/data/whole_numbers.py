"""Integers that a gap in their column made floats: pandas writes 2 as 2.0 beside a missing value.

They are integers again where the whole column says so: every number in it is a float without a
fraction. A text of a table (`2.0` in a CSV) may as well be a version, so there it takes a gap too.
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
    """The columns that `shape` reads and whose numbers are to be integers; with `texts`, numbers
    are written as texts, as a CSV has them.

    The first rows say which may be; only where one may are all `rows` read for it.
    """
    read = {name for names in ROW_PARTS[shape] for name in names}
    likely = _whole(head, read, texts)
    return _whole(rows(), likely, texts, to_the_end=True) if likely else likely


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
    others: int = 0  # numbers with a fraction, integers, and words

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
    rows: Iterable[RawRow], columns: Collection[str], texts: bool, *, to_the_end: bool = False
) -> Columns:
    seen = {name: _Seen() for name in columns}
    for row in rows:
        for name, column in seen.items():
            column.add(row.get(name))
    if texts:
        found = [name for name, one in seen.items() if one.texts and (one.gaps or not to_the_end)]
    else:
        found = [name for name, one in seen.items() if one.floats and not one.texts]
    return frozenset(name for name in found if not seen[name].others)


def _integer(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value[:-2] if isinstance(value, str) and _WHOLE.fullmatch(value) else value
