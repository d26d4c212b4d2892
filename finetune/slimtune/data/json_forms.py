"""How a JSON text holds its rows: in an array, under a key, one behind the other, as a table.

Forms are told by the text's beginning; their names are those of `SourceFile.format`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.data.shapes import KNOWN

_LOOKED_AT = 50  # lines, to tell JSON Lines with a broken first line from CSV
_OBJECT = re.compile(r'\s*\{\s*("|\}|$)')  # and not the `{name}` of a text
_UNDER_A_KEY = re.compile(r'\{\s*"([^"\\]*)"\s*:\s*\[\s*\{')


def format_of(start: str) -> str:
    """json, jsonl or csv, by a text's first lines."""
    if start[0] in "[{":
        return "json"
    lines = [line for line in start.split("\n", _LOOKED_AT)[:_LOOKED_AT] if line.strip()]
    objects = sum(bool(_OBJECT.match(line)) for line in lines)
    return "jsonl" if objects * 2 > len(lines) else "csv"


def form_of(start: str) -> str:
    """How a JSON text holds its rows: array, wrapped, columns, objects or jsonl.

    A list under a name that rows have themselves ("messages") is a row's, not the file's.
    """
    if start[0] == "[":
        return "array"
    key = _UNDER_A_KEY.match(start)
    holds_rows = key and key[1].lower() not in KNOWN
    try:
        found, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):  # broken, or longer than this start
        return "wrapped" if holds_rows and not _is_object(start.split("\n", 2)[1:2]) else "jsonl"
    alone = not start[end:].strip()
    if alone and isinstance(found, dict) and table_rows(found) is not None:
        return "columns"
    if holds_rows and alone:
        return "wrapped"
    return "objects" if "\n" in start[:end] else "jsonl"


def table_rows(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table that is one object, None for any other object.

    As pandas writes it: {column: [value, ...]}, {column: {"0": value, ...}}, {"0": row, ...}, and
    {"columns": [...], "data": [[value, ...], ...]}, {"schema": ..., "data": [row, ...]}.
    """
    if {"columns", "data"} <= value.keys() <= {"columns", "data", "index"}:
        names, data = value["columns"], value["data"]
        listed = isinstance(names, list) and isinstance(data, list)
        if not listed or not all(isinstance(cells, list) for cells in data):
            return None
        return [dict(zip(map(str, names), cells, strict=False)) for cells in data]
    if value.keys() == {"schema", "data"}:  # orient="table"
        return _without_index(value["schema"], value["data"])
    cells = list(value.values())
    lists = len(cells) > 1 and all(isinstance(one, list) for one in cells)
    if lists and _is_named(value) and len(set(map(len, cells))) == 1 and not _holds_turns(cells):
        return [dict(zip(value, row, strict=True)) for row in zip(*cells, strict=True)]
    if not cells or not all(isinstance(one, dict) and one for one in cells):
        return None
    if _is_named(value) and all(one.keys() == cells[0].keys() for one in cells):
        return [{name: value[name][place] for name in value} for place in cells[0]]
    return cells if len(cells) > 1 and all(map(_is_named, cells)) else None


def _without_index(schema: Any, rows: Any) -> list[dict[str, Any]] | None:
    """The rows but for what the schema calls their primary key, which pandas has numbered."""
    index = schema.get("primaryKey", []) if isinstance(schema, dict) else None
    if not isinstance(index, list) or not isinstance(rows, list):
        return None
    if not all(isinstance(row, dict) for row in rows):
        return None
    return [{name: row[name] for name in row if name not in index} for row in rows]


def _is_named(row: Mapping[str, Any]) -> bool:
    """Whether two of its names are ones that a row has."""
    return sum(str(name).lower() in KNOWN for name in row) > 1


def _holds_turns(cells: Sequence[list[Any]]) -> bool:
    return any(isinstance(one, dict | list) for column in cells for one in column)


def _is_object(lines: list[str]) -> bool:
    try:
        return any(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False
