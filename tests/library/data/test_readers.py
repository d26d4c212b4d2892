"""The same rows come out of every format and encoding, and a broken place is named by its line."""

import csv
import json
from pathlib import Path

import pytest

from slimtune.console import InputError, SettingsError
from slimtune.data import json_array, readers

ROWS = [
    {"instruction": "说\u2028你好", "output": 'He said "hi",\nthen left.'},
    {"instruction": "Ωmega", "output": "x" * 50},
    {"instruction": "third", "output": "[1, 2] {}"},
]


def rows_of(file: Path, input_format: str = "auto") -> list[dict]:
    return [row for _, row in readers.read(file, input_format)]


def lines_of(file: Path) -> list[int]:
    return [line for line, _ in readers.read(file)]


def jsonl(rows=ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_json_array(tmp_path, indent, encoding, newline):
    file = tmp_path / "rows.json"
    text = "\n " + json.dumps(ROWS, ensure_ascii=False, indent=indent)
    file.write_text(text, encoding=encoding, newline=newline)
    assert rows_of(file) == rows_of(file, "json") == ROWS
    assert lines_of(file) == ([2, 2, 2] if indent is None else [3, 7, 11])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_json_lines_under_any_name(tmp_path, encoding):
    file = tmp_path / "rows.json"
    file.write_text(jsonl(ROWS[:1]) + "\n  \n" + jsonl(ROWS[1:]), encoding=encoding)
    assert rows_of(file) == rows_of(file, "json") == rows_of(file, "jsonl") == ROWS
    assert lines_of(file) == [1, 4, 5]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_keeps_first_column_and_line_numbers(tmp_path, encoding, newline):
    file = tmp_path / "rows.csv"
    with file.open("w", encoding=encoding, newline=newline) as stream:
        writer = csv.DictWriter(stream, ROWS[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(ROWS)
    assert rows_of(file) == rows_of(file, "csv") == ROWS
    assert lines_of(file) == [2, 4, 5]


def test_csv_field_of_a_megabyte(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nq," + "a" * 1_000_000 + "\n")
    assert len(rows_of(file)[0]["answer"]) == 1_000_000


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_array_is_decoded_through_a_small_window(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    rows = [*ROWS, {"n": -12.5e3, "t": True, "s": "\u4f60" * 99, "deep": [[{"a": None}]]}, {}]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows, indent=1))
    assert rows_of(file) == rows


@pytest.mark.parametrize(
    ("text", "input_format", "where", "why"),
    [
        ('[{"a": 1},\n {"b": }]', "auto", ":2:", "Expecting value"),
        ('[{"a": 1},\n {"b": "x', "auto", ":2:", "Unterminated"),
        ('[{"a": 1}\n {"b": 2}]', "auto", ":2:", "no comma"),
        ('[{"a": 1},\n', "auto", ":2:", "without ]"),
        ('[{"a": 1}]\n\n[]', "auto", ":3:", "text after"),
        ("[1, 2]", "auto", ":1:", "must be an object"),
        ('{"a": 1}\n{"a": \n{"a": 2}', "auto", ":2:", "not valid JSON"),
        ('{"a": 1}\n"text"\n', "jsonl", ":2:", "must be an object"),
        ('a,b\n1,2\n3,"4\n', "csv", ":3:", "not valid CSV"),
        ("a,b\n1,2,3\n", "csv", ":2:", "3 fields under a header of 2"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_broken_place_is_named(tmp_path, monkeypatch, text, input_format, where, why, chunk):
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    file = tmp_path / "rows.txt"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        rows_of(file, input_format)
    assert f"rows.txt{where}" in caught.value.what
    assert why in caught.value.why
    assert caught.value.cure


def test_missing_empty_and_unknown(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        rows_of(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("\n \n")
    with pytest.raises(InputError, match="empty"):
        rows_of(tmp_path / "empty.json")
    with pytest.raises(SettingsError, match="unknown"):
        rows_of(tmp_path / "empty.json", "xml")
    (tmp_path / "binary.json").write_bytes(bytes([0xFF, 0xFF, 0xFF, 0x80]) * 10)
    with pytest.raises(InputError, match="encoding unknown"):
        rows_of(tmp_path / "binary.json")
