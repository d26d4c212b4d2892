"""Rows that no program means to write: each is set aside, or the file is refused with its row."""

import datetime
import decimal
import io
import json
import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from running import refused, succeeds

from slimtune.config.data import Data
from slimtune.data import writing
from slimtune.data.account import ROW_KINDS
from slimtune.data.preparation import prepare
from slimtune.errors import InputError
from slimtune.report import data_report

pytestmark = pytest.mark.faults

GOOD = [{"instruction": f"Question {n}?", "output": f"answer {n}"} for n in range(9)]


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch) -> None:
    monkeypatch.setattr(data_report, "plot", lambda *_: None)


def prepared(file: Path, **more: object) -> tuple[dict[str, object], list[str]]:
    """The numbers of a preparation, and the reasons of the rows that it set aside."""
    folder = file.with_name("out")
    folder.mkdir()
    settings = Data(input=file, max_bad_rows=1e9, workers=1, **{"group_column": ""} | more)
    numbers = writing.write_outputs(prepare(settings, folder), folder, "t")
    aside = (folder / "t_rejected.jsonl").read_text(encoding="utf-8").splitlines()
    for written in folder.glob("*.json*"):
        text = written.read_text(encoding="utf-8")
        for line in [text] if written.suffix == ".json" else text.splitlines():
            json.loads(line, parse_constant=pytest.fail)
    return numbers, [json.loads(line)["reason"] for line in aside]


BRACKETS, DIGITS = "[" * 100_000, "9" * 5000
ROWS = {
    "100,000 brackets": '{"instruction": "x", "output": ' + BRACKETS + "]" * 100_000 + "}",
    "100,000 brackets that stay open": '{"instruction": "x", "output": ' + BRACKETS,
    "100,000 objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "5,000 digits": '{"instruction": "x", "output": ' + DIGITS + "}",
    "5,000 digits that nobody reads": '{"instruction": "x", "output": "b", "n": ' + DIGITS + "}",
    "an answer of half a character": '{"instruction": "x", "output": "b\\ud83d"}',
    "half a character to group by": '{"instruction": "x", "output": "b", "fact": "\\ud800"}',
    "half a character to extract": '{"instruction": "x", "output": "b", "extract": "\\ud83d"}',
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_is_set_aside(kind, tmp_path) -> None:
    """Of a file of lines; as one array of JSON there are no others to be had."""
    good = [json.dumps(row | {"fact": f"f{n}"}) for n, row in enumerate(GOOD)]
    (tmp_path / "rows").write_text("\n".join([good[0], ROWS[kind], *good[1:]]), encoding="utf-8")
    numbers, reasons = prepared(tmp_path / "rows", group_column="fact")
    assert numbers["rows_in"] == 10 and numbers["kept"] == 9 and len(reasons) == 1


@pytest.mark.parametrize("kind", [name for name in ROWS if "open" not in name][:4])
def test_an_array_with_such_a_row_is_refused_with_its_place(kind, tmp_path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(f"[{json.dumps(GOOD[0])}, {ROWS[kind]}]", encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.json.*: cannot be read") as error:
        prepared(file)
    assert "JSON Lines" in error.value.cure


def test_values_in_values_of_a_table_are_read_as_text(tmp_path) -> None:
    meta = {
        "day": datetime.date(2020, 1, 1),
        "price": decimal.Decimal("2.50"),
        "raw": b"\xff",
        "times": [datetime.datetime(2020, 1, 1)],
    }
    rows = [row | {"meta": meta, "fact": f"f{n}"} for n, row in enumerate(GOOD)]
    rows[0]["meta"] = dict.fromkeys(meta)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows")
    assert prepared(tmp_path / "rows", group_column="meta")[0]["kept"] == 9


def test_latin_1_in_a_text_column_is_told_with_its_row(tmp_path) -> None:
    """pyarrow believes the file that its bytes are UTF-8."""
    ends = b"".join(n.to_bytes(4, "little") for n in (0, 2, 6))
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"okcaf\xe9")]
    latin = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
    table = pyarrow.table({"instruction": latin, "output": pyarrow.array(["a", "b"])})
    parquet.write_table(table, tmp_path / "rows")
    with pytest.raises(InputError, match="from row 1 on") as error:
        prepared(tmp_path / "rows")
    assert "UTF8 sequence at string index 1" in error.value.why


def _table(rows: int, compression: str) -> bytes:
    content = [{"instruction": f"Question {n}?", "output": f"answer {n}"} for n in range(rows)]
    stream = io.BytesIO()
    table = pyarrow.Table.from_pylist(content)
    parquet.write_table(table, stream, row_group_size=rows // 3, compression=compression)
    return stream.getvalue()


DAMAGE = {
    "a footer": lambda data: data[:-20] + b"\xff" * 12 + data[-8:],
    "a footer longer than the file": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "no footer": lambda data: data[: len(data) // 2],
    "a page": lambda data: data[:600] + b"\xff" * 200 + data[800:],
    "nothing but its name": lambda data: b"PAR1PAR1",
}


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_table_is_refused(kind, compression, tmp_path) -> None:
    (tmp_path / "rows").write_bytes(DAMAGE[kind](_table(300, compression)))
    with pytest.raises(InputError, match="rows: .*read") as error:
        prepared(tmp_path / "rows")
    assert error.value.exit_code == 3


def test_flipped_bits_of_a_table_never_end_otherwise(tmp_path) -> None:
    """30 times three bits: kept, set aside or refused."""
    data = _table(300, "zstd")
    for seed in range(30):
        chance, flipped = random.Random(seed), bytearray(data)
        for _ in range(3):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "rows").write_bytes(flipped)
        try:
            numbers, _ = prepared(folder / "rows")
        except InputError:
            continue
        ended = numbers["kept"] + sum(numbers[name] for name in ROW_KINDS.values())
        assert numbers["rows_in"] == ended


def test_the_script_says_the_same(settings, tmp_path) -> None:
    (tmp_path / "rows").write_text("\n".join(ROWS.values()), encoding="utf-8")
    out = ("--output-dir", tmp_path / "out")
    refused(3, "rows", "prepare_data", *settings, "--input", tmp_path / "rows", *out)
    lines = [json.dumps(row | {"extract": {"a": 1}}) for row in GOOD]
    (tmp_path / "rows").write_text("\n".join(lines), encoding="utf-8")
    succeeds("prepare_data", *settings, "--input", tmp_path / "rows", *out)


def test_a_pattern_that_is_no_word_is_refused_by_evaluation(settings, rows, tmp_path) -> None:
    test = [json.loads(line) for line in (rows / "train_test.jsonl").open(encoding="utf-8")]
    file = tmp_path / "test.jsonl"
    told = [json.dumps(row | {"extract": ["("] * 999}) for row in test[:4]]
    file.write_text("\n".join(told), encoding="utf-8")
    words = ("--test-data", file, "--lora-model", "null", "--output", tmp_path / "o/results.csv")
    refused(3, "names the extraction pattern", "evaluate_model", *settings, *words)
