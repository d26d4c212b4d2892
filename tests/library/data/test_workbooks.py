"""Workbooks: the sheet that is read, the cells as a person sees them, and words for all others."""

import builtins
import datetime
import re
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from slimtune.data import blocks, sources
from slimtune.data.rows import read_raw_rows
from slimtune.errors import InputError, ResourceError
from slimtune.packages import pip_line

HEADER = ["question", "answer"]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_raw_rows(file)]


def write_book(file: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(file)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        rows_of(file)
    return str(caught.value)


def test_rows_with_their_numbers_under_any_name(tmp_path) -> None:
    rows = [HEADER, ["a", "b\nc"], [None, None], ["d", None], ["e", "f"]]
    file = write_book(tmp_path / "rows.txt", FAQ=rows)
    assert rows_of(file) == [
        {"question": "a", "answer": "b\nc"},
        {"question": "d", "answer": None},
        {"question": "e", "answer": "f"},
    ]
    assert [line for line, _ in read_raw_rows(file)] == [2, 4, 5]
    assert sources.recognise(file, "x").told()["format"] == "xlsx (sheet 'FAQ')"


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_blocks_of_any_size_hold_the_same_rows(tmp_path, monkeypatch, size) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    file = write_book(tmp_path / "rows", FAQ=[HEADER, *([f"q{n}", f"a{n}"] for n in range(99))])
    assert rows_of(file) == [{"question": f"q{n}", "answer": f"a{n}"} for n in range(99)]


@pytest.mark.parametrize(
    ("value", "number_format", "read"),
    [
        (2, "General", 2),
        (2.0, "General", 2),
        (0.1 + 0.2, "General", 0.3),
        (0.15, "0%", "15%"),
        (0.125, "0.0%", "12.5%"),
        (True, "General", True),
        (datetime.datetime(2024, 3, 1), "yyyy-mm-dd", "2024-03-01"),
        (datetime.datetime(2024, 3, 1, 14, 30), "yyyy-mm-dd h:mm", "2024-03-01 14:30:00"),
        (datetime.time(9, 5), "h:mm", "09:05:00"),
        ("a_x000D_\nb", "General", "a\r\nb"),
        ("  kept ", "General", "  kept "),
    ],
)
def test_a_cell_is_what_a_reader_of_the_sheet_sees(tmp_path, value, number_format, read) -> None:
    file = write_book(tmp_path / "rows.xlsx", FAQ=[HEADER, ["a", value]])
    book = openpyxl.load_workbook(file)
    book["FAQ"]["B2"].number_format = number_format
    book.save(file)
    (row,) = rows_of(file)
    assert row["answer"] == read and type(row["answer"]) is type(read)


def test_the_first_sheet_with_a_table_is_read_and_the_others_named(tmp_path, caplog) -> None:
    cover = [["Our answers"], ["Version 3"]]
    file = write_book(
        tmp_path / "rows", Cover=cover, FAQ=[HEADER, ["a", "b"]], Old=[HEADER, ["c", "d"]]
    )
    assert rows_of(file) == [{"question": "a", "answer": "b"}]
    assert "sheet 'FAQ' is read" in caplog.text and "not: 'Old'" in caplog.text
    assert "Cover" not in caplog.text


def test_a_hidden_sheet_comes_last(tmp_path) -> None:
    file = write_book(tmp_path / "rows.xlsx", Old=[HEADER, ["c", "d"]], FAQ=[HEADER, ["a", "b"]])
    book = openpyxl.load_workbook(file)
    book["Old"].sheet_state = "hidden"
    book.active = book["FAQ"]
    book.save(file)
    assert rows_of(file) == [{"question": "a", "answer": "b"}]


def test_title_rows_and_cells_beside_the_table(tmp_path) -> None:
    rows = [[], ["Our answers"], [], HEADER, ["a", "b", "note"], HEADER, ["c", "d"]]
    file = write_book(tmp_path / "rows", FAQ=rows)
    source = sources.recognise(file, "x")
    found = [row for block in blocks.cut(source) for _, row in blocks.parse(block)]
    assert found[0] == {"question": "a", "answer": "b", "column 3": "note"}
    assert isinstance(found[1], blocks.BadLine) and "header once more" in found[1].reason
    assert found[2] == {"question": "c", "answer": "d"}


def test_a_header_twice_and_an_empty_book(tmp_path) -> None:
    twice = write_book(tmp_path / "a", FAQ=[["question", "question"], ["a", "b"]])
    assert "'question' twice" in refusal(twice)
    assert "empty" in refusal(write_book(tmp_path / "b", FAQ=[]))


def test_formulas_that_were_never_computed(tmp_path) -> None:
    """As pandas and openpyxl write them: their cells would pass for empty ones."""
    said = refusal(write_book(tmp_path / "rows", FAQ=[HEADER, ["a", "=1+1"]]))
    assert "rows:2" in said and "=1+1" in said and "save" in said


def test_a_wrong_dimension_hides_no_row(tmp_path) -> None:
    file = write_book(tmp_path / "rows", FAQ=[HEADER, ["a", "b"]])
    other = tmp_path / "other"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'ref="A1:B2"', b'ref="A1"'))
    assert rows_of(other) == [{"question": "a", "answer": "b"}]


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("xl/workbook.bin", ".xlsb"),
        ("word/document.xml", "Word"),
        ("content.xml", "OpenDocument"),
        ("rows.csv", "a zip archive"),
    ],
)
def test_other_archives_are_named(tmp_path, inside, named) -> None:
    with zipfile.ZipFile(tmp_path / "rows", "w") as archive:
        archive.writestr(inside, "x")
    assert named in refusal(tmp_path / "rows")


def test_damage_is_bad_input(tmp_path) -> None:
    whole = write_book(tmp_path / "rows", FAQ=[HEADER, ["a", "b"]]).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    assert "not a whole Excel workbook" in refusal(tmp_path / "cut")
    with zipfile.ZipFile(tmp_path / "rows") as old, zipfile.ZipFile(tmp_path / "bad", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -30 if "sheet1" in name else None])
    assert "not a whole Excel workbook" in refusal(tmp_path / "bad")


def test_without_openpyxl_its_pip_line(tmp_path, monkeypatch) -> None:
    file = write_book(tmp_path / "rows", FAQ=[HEADER, ["a", "b"]])
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "openpyxl":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ResourceError, match=re.escape(pip_line("openpyxl"))):
        rows_of(file)


def test_the_pip_line_is_the_version_that_is_tested() -> None:
    pinned = (Path(__file__).parents[2] / "requirements.txt").read_text(encoding="utf-8")
    assert pip_line("openpyxl").split()[-1] in pinned.split("\n")
