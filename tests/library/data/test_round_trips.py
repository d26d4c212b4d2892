"""Any table that the usual writers write comes back as the same rows, and no line gets lost.

Properties over random tables (hypothesis, the same ones in every run): what csv, json, pandas,
openpyxl and pyarrow write, and tables of text with stray quotes.
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pyarrow
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as some
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from pyarrow import ipc, parquet

from slimtune.config.data import Data
from slimtune.data import blocks, sources
from slimtune.data.preparation import prepare
from slimtune.errors import InputError

quick = settings(max_examples=50, deadline=None, derandomize=True, database=None)
HEADER = ("question", "answer")
ODD = ('"', ",", "\n", ";", "\t", "|", "sep=;", "=1+1", "nan", "2.0", "\u2028", "😀", "{x}", "[1]",
       "'", '""', "a\r\nb", "_x", "#N/A", "你好，世界", " ", "\x1c", "{")  # fmt: skip
signs = some.characters(exclude_categories=("Cs",), exclude_characters="\x00\ufeff")
texts = some.lists(some.sampled_from(ODD) | some.text(signs, max_size=6), max_size=5).map("".join)
tables = some.lists(some.tuples(texts, texts), min_size=1, max_size=6)
Table = list[tuple[str, str]]


def prepared(data: bytes) -> tuple[Table, int]:
    """(question and answer of each kept row, rows rejected); a file without one is all rejected."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        file.write_bytes(data)
        asked = {"validation_ratio": 0, "test_ratio": 0, "max_bad_rows": 1e9, "drop_leaks": False}
        asked |= {"duplicates": "keep", "placeholders": "keep", "neutralise_special_tokens": False}
        try:
            found = prepare(Data(input=file, **asked))
        except InputError as refused:
            assert str(file) in refused.what and refused.why and refused.cure
            assert any(word in f"{refused}" for word in ("no usable row", "no row left", "empty"))
            return [], -1
        rows = [row["messages"] for row in found.rows("train")]
        return [(row[0]["content"], row[1]["content"]) for row in rows], found.reasons.total()


def trimmed(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def expect(table: Table, data: bytes, *, blank_rows: bool = True) -> None:
    """The rows with two texts are kept in their order; the others are counted, blank ones where
    the format has any."""
    whole = [(trimmed(asked), trimmed(answer)) for asked, answer in table]
    usable = [row for row in whole if all(row)]
    bad = [row for row in whole if not all(row) and (blank_rows or any(row))]
    assert prepared(data) == (usable, len(bad) if usable else -1)


def dicts(table: Table) -> list[dict[str, str]]:
    return [dict(zip(HEADER, row, strict=True)) for row in table]


@quick
@given(tables, some.booleans(), some.sampled_from((None, 1)))
def test_json(table, ascii_only, indent) -> None:
    rows = dicts(table)
    for value in (rows, {"data": rows}):
        expect(table, json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode())
    for between in ("\n", ",\n", ""):
        lines = between.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        expect(table, lines.encode())


def written(rows: Table, delimiter: str, quoting: int, newline: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=newline).writerows(rows)
    return text.getvalue()


def is_like_stray_quotes(table: Table, delimiter: str, quoting: int) -> bool:
    """Whether a text over several lines has as many delimiters in each as the header, or a TSV's
    line of it has: these are taken for rows that a stray quote swallowed."""
    for row in table:
        lines = written([row], delimiter, quoting, "\n").rstrip("\n").replace("\r", "\n")
        counts = [line.count(delimiter) for line in lines.split("\n")]
        if len(counts) > 1 and (set(counts) == {1} or (delimiter == "\t" and 1 in counts)):
            return True
    return False


@quick
@given(
    tables,
    some.sampled_from(",;\t|"),
    some.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    some.sampled_from(("\n", "\r\n")),
)
@example([("{name}?", "{x}"), ("{", "{y}")], ",", csv.QUOTE_MINIMAL, "\n")
def test_csv(table, delimiter, quoting, newline) -> None:
    # A csv.writer before Python 3.13 quotes no \r of its own accord: a line break for any reader.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in cell for row in table for cell in row))
    assume(HEADER not in table and not is_like_stray_quotes(table, delimiter, quoting))
    # Python 3.11 writes a carriage return without quotes: its own reader takes it for a line's end.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in text for row in table for text in row))
    data = written([HEADER, *table], delimiter, quoting, newline).encode()
    expect(table, data, blank_rows=False)


ORIENTS = ("records", "columns", "index", "split", "table")


@pytest.mark.parametrize("orient", ORIENTS)
@quick
@given(tables)
def test_pandas(orient, table) -> None:
    expect(table, pandas.DataFrame(dicts(table)).to_json(orient=orient).encode())


def test_pandas_without_names_is_refused(tmp_path) -> None:
    (tmp_path / "rows").write_text(pandas.DataFrame(dicts([("a", "b")])).to_json(orient="values"))
    with pytest.raises(InputError, match="a row must be an object, this is a list"):
        prepare(Data(input=tmp_path / "rows"))


@quick
@given(tables)
def test_openpyxl(table) -> None:
    assume(not any(ILLEGAL_CHARACTERS_RE.search(text) for row in table for text in row))
    assume(HEADER not in table and not any("_x" in text for row in table for text in row))
    expect(table, workbook([HEADER, *table]), blank_rows=False)


def workbook(rows: list[tuple[Any, ...]]) -> bytes:
    book = openpyxl.Workbook()
    for line, row in enumerate(rows, start=1):
        for column, value in enumerate(row, start=1):
            cell = book.active.cell(line, column, value)
            if isinstance(value, str):
                cell.data_type = "s"  # =1+1 is a text here
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def parquet_bytes(table: pyarrow.Table) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream, row_group_size=2)
    return stream.getvalue()


def arrow_bytes(table: pyarrow.Table, make: Callable[..., Any] = ipc.new_stream) -> bytes:
    stream = io.BytesIO()
    with make(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return stream.getvalue()


def feather_bytes(table: pyarrow.Table) -> bytes:
    return arrow_bytes(table, ipc.new_file)


@pytest.mark.parametrize("write", [parquet_bytes, arrow_bytes, feather_bytes])
@quick
@given(tables)
def test_pyarrow(write, table) -> None:
    expect(table, write(pyarrow.Table.from_pylist(dicts(table))))


# --- numbers with gaps, which pandas makes floats -----------------------------------------------

numbers = some.lists(some.none() | some.integers(-(10**9), 10**9), min_size=1, max_size=6)
FRAMES: dict[str, Callable[[pandas.DataFrame], bytes]] = {
    **{
        orient: lambda frame, orient=orient: frame.to_json(orient=orient).encode()
        for orient in ORIENTS
    },
    "csv": lambda frame: frame.to_csv(index=False).encode(),
    "tsv": lambda frame: frame.to_csv(index=False, sep="\t").encode(),
    "parquet": lambda frame: parquet_bytes(pyarrow.Table.from_pandas(frame)),
    "arrow": lambda frame: arrow_bytes(pyarrow.Table.from_pandas(frame)),
    "xlsx": lambda frame: workbook(
        [HEADER, *frame.astype(object).where(frame.notna(), None).itertuples(index=False)]
    ),
}


@pytest.mark.parametrize("form", FRAMES)
@quick
@given(numbers)
def test_integers_of_a_column_with_gaps(form, values) -> None:
    asked = [f"how many {n}?" for n in range(len(values))]
    frame = pandas.DataFrame({"question": asked, "answer": pandas.Series(values, dtype=float)})
    if None not in values:
        frame["answer"] = frame["answer"].astype(int)
    table = [(q, "" if n is None else str(n)) for q, n in zip(asked, values, strict=True)]
    expect(table, FRAMES[form](frame))


# --- no line gets lost --------------------------------------------------------------------------

quoted_cells = some.lists(
    some.sampled_from(("word", " ", '"', '""', "'", "long text", "?")), min_size=1, max_size=4
).map("".join)


@pytest.mark.parametrize("delimiter", [",", "\t"])
@settings(quick, max_examples=200)
@given(some.lists(some.tuples(quoted_cells, quoted_cells), min_size=1, max_size=8))
def test_every_line_with_stray_quotes_is_in_a_row_or_set_aside(delimiter, cells) -> None:
    """Each line bears a number of its own, which must come out once."""
    lines = [
        f"{asked}<{n}>{delimiter}{answer}<{n}>" for n, (asked, answer) in enumerate(cells, start=1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        file.write_text("\n".join([delimiter.join(HEADER), *lines]) + "\n", encoding="utf-8")
        try:
            source = sources.recognise(file, "x")
            rows = [row for block in blocks.cut(source) for _, row in blocks.parse(block)]
        except InputError as refused:
            assert "inside a quoted text" in refused.why and f"{file}:" in refused.what
            return
    said = [
        row.text if isinstance(row, blocks.BadLine) else "\n".join(filter(None, row.values()))
        for row in rows
    ]
    for n in range(1, len(cells) + 1):
        assert "\n".join(said).count(f"<{n}>") == 2
