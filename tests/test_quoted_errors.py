"""QUICK_START's tables can be searched with the words of an error: those stand so in the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("QUICK_START.md", "QUICK_START.zh-CN.md")
ROW = re.compile(r"^\| (\d) `([^`]+)`", re.M)
CODES = {"SettingsErrors": 2, "SettingsError": 2, "Mistake": 2, "InputError": 3}
CODES |= {"ResourceError": 4, "Passing": 4, "QualityError": 5, "LockedError": 6}


def quoted(table: str) -> list[tuple[int, str]]:
    """(exit code, words) of each row that quotes an error."""
    text = (ROOT / table).read_text(encoding="utf-8")
    return [(int(code), words) for code, words in ROW.findall(text)]


def text_of(node: ast.AST) -> str:
    """A string as a user reads it, … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp):
        return text_of(node.value.orelse)  # "encoding unknown", or not certain
    return "…"


@cache
def said() -> list[tuple[int | None, str]]:
    """(exit code of the error that it is an argument of, text) of every string of the library."""
    found = []
    for file in (ROOT / "finetune").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            named = [part.id for part in [call.func, *call.args] if isinstance(part, ast.Name)]
            codes = [CODES[name] for name in named if name in CODES]
            for part in ast.walk(call):
                if isinstance(part, ast.JoinedStr | ast.Constant):
                    found.append((codes[0] if codes else None, text_of(part)))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                found.append((None, text_of(node)))
    return found


@pytest.mark.parametrize("table", TABLES)
def test_the_words_are_those_of_the_code(table: str) -> None:
    assert len(quoted(table)) > 25
    for code, words in quoted(table):
        codes = {one for one, text in said() if words in text}
        assert codes, f"{table}: no error says {words!r}"
        told = codes - {None}
        assert code in told or not told, f"{table}: {words!r} ends with {told}, not {code}"


def test_both_languages_quote_the_same() -> None:
    english, chinese = map(quoted, TABLES)
    assert sorted(english) == sorted(chinese)
