"""Files of Arrow: a stream, a file with footer, what `datasets` saves, and damage to them."""

import json
import pickle
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet

from slimtune.console import InputError
from slimtune.data import blocks, sources
from slimtune.data.rows import read_raw_rows

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
