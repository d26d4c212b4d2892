"""The same rows come out of every format and encoding, and a broken place is named by its line."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from slimtune.data import blocks, encodings, json_array, sources
from slimtune.data.rows import read_raw_rows
from slimtune.errors import InputError, SettingsError

ROWS = [
    {"instruction": "说\u2028你好", "output": 'He said "hi",\nthen left.'},
    {"instruction": "Ωmega", "output": "x" * 50},
    {"instruction": "third", "output": "[1, 2] {}"},
]


def rows_of(file: Path, input_format: str = "auto") -> list[dict]:
    return [row for _, row in read_raw_rows(file, input_format)]


def lines_of(file: Path) -> list[int]:
    return [line for line, _ in read_raw_rows(file)]


def jsonl(rows=ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows=ROWS, delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_json_array(tmp_path, indent, encoding, newline):
    file = tmp_path / "rows.json"
    text = "\n " + json.dumps(ROWS, ensure_ascii=False, indent=indent)
    file.write_text(text, encoding=encoding, newline=newline)
    assert rows_of(file) == rows_of(file, "json") == ROWS
    assert lines_of(file) == ([2, 2, 2] if indent is None else [3, 7, 11])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_lines_under_any_name(tmp_path, encoding):
    file = tmp_path / "rows.json"
    file.write_text(jsonl(ROWS[:1]) + "\n  \n" + jsonl(ROWS[1:]), encoding=encoding)
    assert rows_of(file) == rows_of(file, "json") == rows_of(file, "jsonl") == ROWS
    assert lines_of(file) == [1, 4, 5]
    assert sources.recognise(file, "x").encoding == ("utf-16" if encoding == "utf-16" else encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_keeps_first_column_and_line_numbers(tmp_path, encoding, newline, delimiter):
    file = tmp_path / "rows.csv"
    file.write_text(as_csv(delimiter=delimiter), encoding=encoding, newline=newline)
    assert rows_of(file) == rows_of(file, "csv") == ROWS
    assert lines_of(file) == [2, 4, 5]


def test_parquet_and_gzip_by_their_content(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows", row_group_size=2)
    assert rows_of(tmp_path / "rows") == ROWS and lines_of(tmp_path / "rows") == [1, 2, 3]
    for name, text in (("a.json", json.dumps(ROWS)), ("b", jsonl()), ("c.csv.gz", as_csv())):
        (tmp_path / name).write_bytes(gzip.compress(text.encode("gb18030")))
        assert rows_of(tmp_path / name) == ROWS
    (tmp_path / "cut.gz").write_bytes(gzip.compress(jsonl(ROWS * 99).encode())[:-20])
    with pytest.raises(InputError, match="broken gzip"):
        rows_of(tmp_path / "cut.gz")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        rows_of(tmp_path / "bad.parquet")


def test_a_folder_is_its_data_files_in_order(tmp_path, caplog):
    (tmp_path / "b.csv").write_text(as_csv(ROWS[1:2]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/c.jsonl").write_text(jsonl(ROWS[2:]))
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / ".hidden.json").write_text("nothing")
    (tmp_path / "README.md").write_text("# about")
    found = sources.find(tmp_path)
    assert [source.name for source in found] == ["a.json", "b.csv", "sub/c.jsonl"]
    assert rows_of(tmp_path) == ROWS
    assert "README.md: passed over" in caplog.text
    with pytest.raises(InputError, match="no data file"):
        (tmp_path / "empty").mkdir()
        sources.find(tmp_path / "empty")


def test_csv_field_of_a_megabyte(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nq," + "a" * 1_000_000 + "\n")
    assert len(rows_of(file)[0]["answer"]) == 1_000_000


@pytest.mark.parametrize("size", [1, 30, 100, 10_000])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_blocks_of_any_size_hold_the_same_rows(tmp_path, monkeypatch, size, chunk):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    rows = [*ROWS, {"n": -12.5e3, "t": True, "s": "\u4f60" * 99, "deep": [[{"a": None}]]}, {}]
    rows += [{"s": '"},{"'}, {"s": "\\"}, {"s": ["[", "]"]}]
    for name, text in (("a", json.dumps(rows, indent=1)), ("b", jsonl(rows))):
        (tmp_path / name).write_text(text)
        assert rows_of(tmp_path / name) == rows
    assert lines_of(tmp_path / "a")[:3] == [2, 6, 10]
    (tmp_path / "c").write_text(as_csv())
    assert rows_of(tmp_path / "c") == ROWS and lines_of(tmp_path / "c") == [2, 4, 5]


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


def test_bad_lines_stand_between_good_rows(tmp_path):
    file = tmp_path / "rows"
    file.write_text('a,b\n1,2\n3,4,5\n"6"x,7\n\n8,9\n')
    parsed = [
        one for block in blocks.cut(sources.recognise(file, "x")) for one in blocks.parse(block)
    ]
    assert [line for line, _ in parsed] == [2, 3, 4, 6]
    assert [isinstance(row, blocks.BadLine) for _, row in parsed] == [False, True, True, False]
    assert parsed[3][1] == {"a": "8", "b": "9"}


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
    (tmp_path / "book.csv").write_bytes(b"PK\x03\x04....")
    with pytest.raises(InputError, match="Excel"):
        rows_of(tmp_path / "book.csv")


def judged(file: Path) -> tuple[str, list[dict], list[str]]:
    """The file's encoding, its good rows, and why the others are none."""
    source = sources.recognise(file, "x")
    rows = [row for block in blocks.cut(source) for _, row in blocks.parse(block)]
    bad = [row for row in rows if isinstance(row, blocks.BadLine)]
    return source.encoding, [row for row in rows if row not in bad], [row.reason for row in bad]


@pytest.mark.parametrize("text", [jsonl, json.dumps, as_csv])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("byte", [b"\xe9", b"\xff", b"\xe4\xbd", b"\x80" * 3])
def test_one_bad_byte_costs_its_row_only(tmp_path, text, bom, byte):
    rows = [{"instruction": f"第{i}个问题是什么", "output": "mañana, x"} for i in range(20)]
    data = text(rows).encode()
    if text is json.dumps:
        data = json.dumps(rows, ensure_ascii=False).encode()
    spot = data.index("7个".encode()) + 1
    (tmp_path / "rows").write_bytes(bom + data[:spot] + byte + data[spot:])
    encoding, good, bad = judged(tmp_path / "rows")
    assert encoding == ("utf-8-sig" if bom else "utf-8")
    assert good == rows[:7] + rows[8:]
    assert bad == [f"a byte that is not UTF-8{' with BOM' if bom else ''}"]


def test_a_lone_latin_letter_in_plain_english_is_no_chinese(tmp_path):
    """`caf\xe9s` fits GB18030, as one wrong Chinese character."""
    rows = [{"instruction": f"Where is it? {i}", "output": "In the cafes."} for i in range(30)]
    data = jsonl(rows).encode().replace(b"cafes", b"caf\xe9s", 1)
    (tmp_path / "rows").write_bytes(data)
    encoding, good, bad = judged(tmp_path / "rows")
    assert (encoding, good, len(bad)) == ("utf-8", rows[1:], 1)


@pytest.mark.parametrize("encoding", ["gbk", "gb18030"])
@pytest.mark.parametrize("ascii_rows", [0, 1, 40_000])
def test_chinese_in_gbk_is_still_gbk_after_much_english(tmp_path, encoding, ascii_rows):
    plain = [{"instruction": "Name a city that is large.", "output": "Paris"}] * ascii_rows
    rows = [*plain, {"instruction": "你好，世界！中国的首都是哪里？", "output": "首都是北京。"}]
    (tmp_path / "rows").write_text(jsonl(rows), encoding=encoding)
    assert judged(tmp_path / "rows") == ("gb18030", rows, [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_with_an_odd_last_byte_loses_no_whole_row(tmp_path, encoding):
    (tmp_path / "rows").write_bytes(jsonl().encode(encoding) + b"\x0a")
    assert judged(tmp_path / "rows")[1:] == (
        ROWS,
        [f"a byte that is not {encodings.ENCODING_NAMES[encoding]}"],
    )


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", ["data", "train", "我的 rows"])
def test_a_list_under_a_key(tmp_path, monkeypatch, chunk, indent, key):
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    file = tmp_path / "rows.json"
    file.write_text(" " + json.dumps({key: ROWS}, indent=indent, ensure_ascii=False) + "\n")
    assert rows_of(file) == rows_of(file, "json") == ROWS
    assert lines_of(file) == ([1, 1, 1] if indent is None else [3, 7, 11])
    assert sources.recognise(file, "x").told()["format"] == "json array under a key"


def test_a_list_under_a_key_longer_than_what_is_looked_at(tmp_path):
    rows = ROWS * 8000
    for indent in (None, 1):
        (tmp_path / "rows").write_text(json.dumps({"data": rows}, indent=indent))
        assert rows_of(tmp_path / "rows") == rows


@pytest.mark.parametrize("size", [1, 100, 10_000])
@pytest.mark.parametrize("between", ["\n", ",\n", "\n\n"])
def test_indented_objects_one_after_another(tmp_path, monkeypatch, size, between):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    texts = [json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS]
    (tmp_path / "rows").write_text(between.join(texts) + "\n")
    assert rows_of(tmp_path / "rows") == ROWS
    (tmp_path / "rows").write_text(between.join(texts)[:-1])
    with pytest.raises(InputError, match=r"rows:\d+: cannot be read"):
        rows_of(tmp_path / "rows")


def test_a_list_that_belongs_to_a_row_stays_in_it(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for rows in ([{"messages": turns}], [{"dialogue": turns}] * 2):
        (tmp_path / "rows").write_text(jsonl(rows))
        assert rows_of(tmp_path / "rows") == rows
    (tmp_path / "rows").write_text('{"dialogue": [{"role": \n' + jsonl([{"dialogue": turns}] * 2))
    assert sources.recognise(tmp_path / "rows", "x").format == "jsonl"


@pytest.mark.parametrize(
    ("text", "why", "cure"),
    [
        ('{"train": [{"a": 1}],\n "test": [{"a": 2}]}', '"train" is followed by "test"', "jq"),
        ('{"data": [{"a": 1}]', 'no } after the list "data"', "complete"),
        ('{"data": [{"a": 1},\n {"a": }]}', "not valid JSON", "repair or delete"),
    ],
)
def test_an_object_with_more_than_one_list_is_refused(tmp_path, text, why, cure):
    (tmp_path / "rows").write_text(text)
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path / "rows")
    assert "rows:" in caught.value.what and why in caught.value.why and cure in caught.value.cure


def test_chinese_in_utf_8_with_a_byte_that_makes_it_fit_gb18030_stays_utf_8(tmp_path):
    rows = [{"instruction": "你好", "output": f"cafes {i}"} for i in range(9)]
    data = jsonl(rows).encode().replace(b"cafes 4", b"caf\xe9s 4")
    assert data.decode("gb18030")  # as mojibake
    (tmp_path / "rows").write_bytes(data)
    encoding, good, bad = judged(tmp_path / "rows")
    assert (encoding, good, len(bad)) == ("utf-8", rows[:4] + rows[5:], 1)
