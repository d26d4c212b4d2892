"""Small files as people have reported them: ours, and those of ../shared/cases where these are."""

import json
from pathlib import Path

import pytest
import situations
from originals import CASES

from slimtune.config.data import Data
from slimtune.data.preparation import Prepared, prepare
from slimtune.errors import SlimTuneError

KEPT = {
    "nan_input.json": 6, "context_qa.jsonl": 6, "weight.jsonl": 4, "sjis.csv": 20,
    "nulbytes.csv": 2, "cat_bom.csv": 8, "dict_of_lists.json": 6, "parts.jsonl": 6,
    "developer.jsonl": 6, "json_in_csv.csv": 6, "bools.jsonl": 6, "cn_cols.csv": 4,
    "dolly.jsonl": 6, "sep_line.csv": 6, "title_row.csv": 6, "blank_rows.csv": 6, "hf_clone": 6,
    "glued.jsonl": 6, "one_row.jsonl": 1, "swallow.csv": 8, "roles.jsonl": 11,
}  # fmt: skip
REFUSED = {
    "dup_header.csv": "'answer' twice", "lfs.jsonl": "git lfs pull", "tools.jsonl": "tool_calls",
    "cat_arrays.json": "cat_arrays.json:2",
}  # fmt: skip
PLACES = ["ours", *(["originals"] if CASES.is_dir() else [])]


@pytest.fixture(scope="module", params=PLACES)
def folder(request, tmp_path_factory) -> Path:
    if request.param == "originals":
        return CASES
    made = tmp_path_factory.mktemp("situations")
    situations.write_all(made)
    return made


def prepared(file: Path) -> Prepared:
    """All usable rows of a file in the training split."""
    return prepare(Data(input=file, validation_ratio=0, test_ratio=0))


def test_every_file_has_its_expectation(folder) -> None:
    assert {file.name for file in folder.iterdir()} == {*KEPT, *REFUSED}


@pytest.mark.parametrize("name", KEPT)
def test_rows_as_a_person_reads_them(name, folder) -> None:
    found = prepared(folder / name)
    assert found.counts()["train"] == KEPT[name]
    told = json.dumps(found.rows("train"), ensure_ascii=False)
    assert not any(word in told for word in ('"nan"', "\\u0000", "\ufffd"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_cause(name, folder) -> None:
    with pytest.raises(SlimTuneError) as caught:
        prepared(folder / name)
    assert caught.value.exit_code in (2, 3)
    assert REFUSED[name] in str(caught.value)
