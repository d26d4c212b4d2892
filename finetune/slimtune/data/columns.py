"""A file's columns under the names that the shapes know: mapped, forgiven, or suggested."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from slimtune.config.data import Data
from slimtune.console import quoted
from slimtune.data.shapes import KNOWN, RawRow, has_columns
from slimtune.errors import SettingsError

_SAMPLES_GROUP = Data.model_fields["group_column"].default
_BETWEEN = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # commas outside quotes
NUMBERED = re.compile(r"column \d+")  # the name of a column that has none
_NUMBER = re.compile(r"[-+\d.,:/ %$€¥年月日]+")  # dates and amounts too


def parse_mapping(words: str) -> dict[str, str]:
    """{column of the file: name the shapes know} from "question=Questions,answer=Answers".

    A column with a comma in its name stands in double quotes: `question="ask, please"`.
    """
    mapping = {}
    for word in filter(None, (word.strip() for word in _BETWEEN.split(words))):
        known, found, column = word.partition("=")
        known, column = _plain(known), column.strip()
        if len(column) > 1 and column[0] == column[-1] == '"':
            column = column[1:-1]
        if not found or not column.strip() or known not in KNOWN:
            near = difflib.get_close_matches(known, KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KNOWN)}"
            raise SettingsError(
                f"columns: {word!r} is no name=column",
                f"the name must be one that a row's shape uses; {hint}",
                "for instance --columns question=Questions,answer=Answers",
            )
        mapping[_plain(column)] = known
    return mapping


def renamed(row: RawRow, mapping: Mapping[str, str]) -> RawRow:
    """The row with forgiven headers (case, spaces) and mapped columns under their known names."""
    columns = tuple(row)
    names = _names(columns, tuple(mapping.items()))
    return row if names == columns else dict(zip(names, row.values(), strict=True))


@lru_cache(maxsize=256)
def _names(columns: tuple[str, ...], mapping: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """A column mapped by the user wins, then one spelled exactly, then one that is forgiven.

    Each name once: a column of its own whose name the user gave to another loses it.
    """
    mapped = dict(mapping)
    given = {mapped[_plain(column)] for column in columns if _plain(column) in mapped}
    taken = given | {column for column in columns if column in KNOWN}
    names: list[str] = []
    for column in columns:
        plain = _plain(column)
        forgiven = plain if plain in KNOWN and plain not in taken else column
        if plain not in mapped and forgiven in given:
            forgiven = f"{column} (not mapped)"
        name = mapped.get(plain, forgiven)
        name = column if name in names else name
        names.append(f"{name} (again)" if name in names else name)
    return tuple(names)


def _plain(column: Any) -> str:
    return " ".join(str(column).split()).lower()


def require_columns(mapping: Mapping[str, str], heads: Mapping[str, Sequence[RawRow]]) -> None:
    """SettingsError for a column of --columns that no file has; `heads` are their first rows."""
    found = dict.fromkeys(name for rows in heads.values() for name in found_in(rows))
    plain = {_plain(name) for name in found}
    for column, known in mapping.items():
        if column not in plain:
            near = difflib.get_close_matches(column, plain, n=1)
            raise SettingsError(
                f"data.columns: {known}={column}: no such column",
                f"found are {', '.join(found) or 'none'}",
                f"did you mean {near[0]}?" if near else "name one of them",
            )


def group_name(column: str, mapping: Mapping[str, str], heads: Iterable[Sequence[RawRow]]) -> str:
    """The name under which rows have the column that parts them, once columns are renamed.

    A header 部门 or " Department " that became another name parts rows under that one. Raises
    SettingsError for a column of the user's own that no file has: rows that belong together would
    be parted in silence. The default is the sample's, which other files need not have.
    """
    heads = list(heads)
    for row in (row for rows in heads for row in rows):
        for name, becomes in zip(row, _names(tuple(row), tuple(mapping.items())), strict=True):
            if _plain(name) == _plain(column):
                return becomes
    if column in ("", _SAMPLES_GROUP):
        return column
    found = dict.fromkeys(name for rows in heads for name in found_in(rows))
    near = difflib.get_close_matches(column, found, n=1)
    raise SettingsError(
        f"data.group_column: {column}: no such column",
        f"found are {', '.join(found) or 'none'}",
        f"did you mean {near[0]}?" if near else "name one of them",
    )


def found_in(rows: Iterable[RawRow]) -> list[str]:
    """The column names of `rows`, in the order they first appear."""
    return list(dict.fromkeys(str(key) for row in rows for key in row))


_MOST_VALUES = 20
_LONGEST_VALUE = 40
Values = dict[str, Counter | None]  # column -> rows of each value; None where these are too many


def count_value(values: Values, column: str, value: Any) -> None:
    """One row more of this value, while the column looks like one of few, short values."""
    counts = values.setdefault(column, Counter())
    if counts is None:
        return
    counts[str(value)] += 1
    if len(counts) > _MOST_VALUES or len(str(value)) > _LONGEST_VALUE:
        values[column] = None


def add_values(values: Values, more: Values) -> None:
    """The counts of other rows too."""
    for column, counts in more.items():
        known = values.setdefault(column, Counter())
        if known is not None and counts is not None:
            known.update(counts)
        if known is None or counts is None or len(known) > _MOST_VALUES:
            values[column] = None


def small(counts: Counter | None) -> dict[str, int]:
    """The rows of each value, most first; nothing of a column whose values hardly come twice."""
    few = counts and 2 * len(counts) <= counts.total()
    return dict(counts.most_common()) if few else {}


# What people call the two columns that matter, in the order in which to believe it.
_ASKED = (
    "question",
    "prompt",
    "query",
    "instruction",
    "问题",
    "提问",
    "客户提问",
    "标准问",
    "指令",
)
_ASKED += ("问", "input", "text", "user", "request", "title")
_REPLIED = ("answer", "reply", "response", "output", "target", "completion", "答案", "回答")
_REPLIED += ("标准答", "回复", "答", "输出", "label", "category", "assistant")
_USUAL = frozenset((*KNOWN, *_ASKED, *_REPLIED))


def maps_any(mapping: Mapping[str, str], columns: Iterable[str]) -> bool:
    """Whether the user's mapping names one of `columns`."""
    return any(_plain(column) in mapping for column in columns)


def is_usual(column: str) -> bool:
    """Whether it is a name that people give to a column."""
    return _plain(column) in _USUAL


def suggestion(rows: Sequence[RawRow]) -> str:
    """The flag that makes the file readable, tried on `rows` and found to fit; else what lacks.

    Names count first, then the texts themselves: the question stands before the answer. A column
    of numbers is neither.
    """
    texts = [name for name in found_in(rows) if _is_text(name, rows)]
    if len(texts) < 2:
        have = f"only {texts[0]!r} holds text" if texts else "no column holds text"
        return f"a row needs a question and an answer, and {have}: give a file that has both"
    asked, replied = _named_like(_ASKED, texts), _named_like(_REPLIED, texts)
    rest = [name for name in texts if name not in (asked, replied)]
    asked = asked or rest.pop(0)
    replied = replied or (rest[-1] if rest else "")
    mapping = {_plain(asked): "question", _plain(replied): "answer"}
    fitting = sum(has_columns("qa", renamed(row, mapping)) for row in rows)
    words = f"question={_quoted(asked)},answer={_quoted(replied)}"
    if not replied or 2 * fitting < len(rows):
        return f"name the columns that hold question and answer: {', '.join(texts)}"
    by_place = not (_named_like(_ASKED, [asked]) or _named_like(_REPLIED, [replied]))
    if by_place and not NUMBERED.fullmatch(asked):
        hint = "put a header above the first line if that is a row itself; else, "
    else:
        hint = ""
    return f"{hint}did you mean --columns {quoted(words)}?"


def _is_text(column: str, rows: Sequence[RawRow]) -> bool:
    values = [row[column] for row in rows if row.get(column) not in (None, "")]
    texts = [value for value in values if isinstance(value, str) and not _NUMBER.fullmatch(value)]
    return 2 * len(texts) > len(values)


def _named_like(names: Sequence[str], columns: Sequence[str]) -> str:
    """The column with the first of `names` in its own: as a whole, as a word, or within Chinese."""
    for name in names:
        for column in columns:
            plain = _plain(column)
            words = re.split(r"[^a-z]+", plain)
            if plain == name or name in words or f"{name}s" in words:
                return column
            if not name.isascii() and name in plain:
                return column
    return ""


def _quoted(column: str) -> str:
    return f'"{column}"' if "," in column or '"' in column else column
