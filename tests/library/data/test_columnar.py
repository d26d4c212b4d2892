"""Files of Arrow: a stream, a file with footer, what `datasets` saves, and damage to them."""

import json
import pickle
import struct
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet

from slimtune.config.data import Data
from slimtune.data import blocks, sources
from slimtune.data.preparation import prepare
from slimtune.data.rows import read_raw_rows
from slimtune.errors import InputError

ROWS = [{"question": f"q{n}", "answer": "a" * 50} for n in range(5001)]


def rows_of(path: Path) -> list[dict]:
    return [row for _, row in read_raw_rows(path)]


def write_arrow(file: Path, rows=ROWS, *, footer: bool = False) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    make = ipc.new_file if footer else ipc.new_stream
    with pyarrow.OSFile(str(file), "wb") as stream, make(stream, table.schema) as writer:
        writer.write_table(table)
    return file


@pytest.mark.parametrize("footer", [False, True])
def test_an_arrow_file_is_told_by_its_content(tmp_path, footer) -> None:
    file = write_arrow(tmp_path / "rows", footer=footer)
    assert rows_of(file) == ROWS
    assert [line for line, _ in read_raw_rows(file)][-1] == len(ROWS)


def test_a_block_weighs_what_its_rows_do(tmp_path) -> None:
    """A slice of a batch would travel to a worker with all of the batch."""
    source = sources.recognise(write_arrow(tmp_path / "rows"), "x")
    weights = [len(pickle.dumps(block.rows)) for block in blocks.cut(source)]
    assert len(weights) == 3 and weights[0] < 150_000 and weights[-1] < weights[0]


def save(folder: Path, rows=ROWS, shards: int = 2) -> None:
    """As `Dataset.save_to_disk` lays it out."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    each = -(-len(rows) // shards)
    for n, name in enumerate(names):
        write_arrow(folder / name, rows[n * each : (n + 1) * each])
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_what_datasets_saved_is_read_once(tmp_path) -> None:
    save(tmp_path / "set")
    write_arrow(tmp_path / "set/cache-0123.arrow")  # of a map: the same rows again
    assert rows_of(tmp_path / "set") == ROWS
    (tmp_path / "set/data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match="data-00001-of-00002.arrow' is missing"):
        rows_of(tmp_path / "set")


def test_datasets_itself_is_read(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "set", num_shards={"train": 3})
    assert rows_of(tmp_path / "set") == ROWS


def numbered(*numbers: int) -> list[dict]:
    return [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in numbers]


@pytest.fixture
def dataset_dict(tmp_path) -> Path:
    """As `DatasetDict.save_to_disk` lays it out: 40 training rows, 3 for validation, 2 to test."""
    parts = {"train": range(40), "validation": range(50, 53), "test": range(60, 62)}
    for name, numbers in parts.items():
        save(tmp_path / "set" / name, numbered(*numbers), shards=1)
    (tmp_path / "set/dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    return tmp_path / "set"


def counted(**settings: object) -> tuple[int, int, int]:
    with prepare(Data.model_validate(settings)) as prepared:
        counts = prepared.counts()
        return counts["train"], counts["validation"], counts["test"]


def test_a_saved_data_sets_own_splits_stay_what_they_are(dataset_dict, caplog) -> None:
    with caplog.at_level("INFO"):
        assert counted(input=dataset_dict) == (40, 3, 2)
    assert "set/test: the test rows, as the data set has it" in caplog.text
    assert counted(input=f"{dataset_dict}:3") == (120, 3, 2)  # weights are for training


def test_given_test_rows_take_the_place_of_a_saved_data_sets(dataset_dict, caplog) -> None:
    mine = dataset_dict.with_name("mine.json")
    mine.write_text(json.dumps(numbered(70, 71, 72, 73)))
    assert counted(input=dataset_dict, test_input=mine) == (40, 3, 4)
    assert "set/test: left out, data.test_input is given" in caplog.text


@pytest.mark.parametrize(
    "content", ["{}", '{"splits": {"test": 1}}', '{"splits": [["test"]]}', "["]
)
def test_without_a_list_of_splits_folders_are_folders(content, dataset_dict) -> None:
    (dataset_dict / "dataset_dict.json").write_text(content)
    assert sum(counted(input=dataset_dict)) == 45


def test_damage_is_named(tmp_path) -> None:
    file = write_arrow(tmp_path / "rows")
    whole = file.read_bytes()
    for end in (8, 100, len(whole) // 2):
        file.write_bytes(whole[:end])
        with pytest.raises(InputError, match="not valid arrow"):
            rows_of(file)
    file.write_bytes(b"ARROW1\0\0" + b"\0" * 40)
    with pytest.raises(InputError, match="not valid arrow"):
        rows_of(file)
    parquet.write_table(pyarrow.table({"a": [1]}), file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="not valid parquet"):
        rows_of(file)


def of_bytes(*texts: bytes) -> pyarrow.Array:
    """An array of texts whose bytes nobody has checked."""
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    buffers = [None, pyarrow.py_buffer(b"".join(struct.pack("<i", end) for end in ends))]
    return pyarrow.Array.from_buffers(
        pyarrow.string(), len(texts), [*buffers, pyarrow.py_buffer(b"".join(texts))]
    )


def write_columns(file: Path, form: str, **columns: pyarrow.Array) -> Path:
    table = pyarrow.table(columns)
    if form == "parquet":
        parquet.write_table(table, file)
    else:
        with pyarrow.OSFile(str(file), "wb") as stream, ipc.new_stream(stream, table.schema) as out:
            out.write_table(table)
    return file


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_texts_that_are_no_utf_8_are_named(tmp_path, form) -> None:
    broken = of_bytes(b"fine", "你".encode("gbk"))
    file = write_columns(tmp_path / "rows", form, question=broken, answer=pyarrow.array(["a", "b"]))
    with pytest.raises(InputError, match=f"not valid {form}: .*UTF8"):
        rows_of(file)


def test_offsets_that_lead_elsewhere_are_named(tmp_path) -> None:
    """pyarrow believes them: it read foreign memory, or the process ended."""
    file = write_columns(tmp_path / "rows", "arrow", question=of_bytes(b"a" * 1234, b"b"))
    whole = file.read_bytes()
    at = whole.index(struct.pack("<iii", 0, 1234, 1235))
    file.write_bytes(whole[: at + 8] + struct.pack("<i", 2**30) + whole[at + 12 :])
    with pytest.raises(InputError, match="not valid arrow"):
        rows_of(file)


def test_a_value_that_python_does_not_hold_costs_its_row(tmp_path) -> None:
    days = pyarrow.array([0, 2**30, 1], pyarrow.int32()).cast(pyarrow.date32())
    file = write_columns(tmp_path / "rows", "arrow", day=days, n=pyarrow.array([1, 2, 3]))
    source = sources.recognise(file, "x")
    found = [row for block in blocks.cut(source) for _, row in blocks.parse(block)]
    assert [isinstance(row, blocks.BadLine) for row in found] == [False, True, False]
    assert found[0] == {"day": "1970-01-01", "n": 1} and "cannot be read" in found[1].reason
