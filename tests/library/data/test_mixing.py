"""Several inputs and their weights: each its own shape, copies in training, exact draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from prepared_rows import Output

from slimtune.config.data import Data
from slimtune.data.mixing import row_copies
from slimtune.data.preparation import prepare
from slimtune.errors import SettingsError

TEXTS = np.random.default_rng(1).integers(0, 2**63, 1000).astype(np.uint64)
FILES = np.repeat([0, 1], 500)


@pytest.mark.parametrize("weight", [0.001, 0.1, 0.5, 0.999, 1, 1.25, 2, 7.5])
def test_copies_are_as_many_as_the_weight_says(weight) -> None:
    copies = row_copies(TEXTS, FILES, np.ones(1000, bool), [1, weight], 42)
    assert (copies[:500] == 1).all()
    assert copies[500:].sum() == round(weight * 500)
    assert set(copies[500:]) <= {int(weight), int(weight) + 1}


def test_a_draw_is_seeded_and_stays_when_rows_are_added() -> None:
    usable = np.ones(1000, bool)
    half = row_copies(TEXTS, FILES * 0, usable, [0.5], 42)
    assert (half == row_copies(TEXTS, FILES * 0, usable, [0.5], 42)).all()
    other = row_copies(TEXTS, FILES * 0, usable, [0.5], 43)
    assert 150 < ((half == 1) & (other == 1)).sum() < 350  # a quarter of the rows by chance
    fewer = row_copies(TEXTS[:900], FILES[:900] * 0, usable[:900], [0.5], 42)
    assert (fewer == half[:900]).mean() > 0.9


def test_what_is_not_usable_is_not_drawn_from() -> None:
    usable = np.arange(1000) % 2 == 0
    copies = row_copies(TEXTS, FILES * 0, usable, [0.5], 42)
    assert copies[usable].sum() == 250 and (copies[~usable] == 1).all()


def table(folder: Path, name: str, rows: int, header: str = "question,answer") -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    word = file.relative_to(folder).as_posix()
    file.write_text(header + "\n" + "".join(f"{word} q{n},a{n}\n" for n in range(rows)))
    return file


def jsonl(folder: Path, name: str, rows: int) -> Path:
    file = folder / name
    row = [{"instruction": f"{name} i{n}", "input": "", "output": f"o{n}"} for n in range(rows)]
    file.write_text("".join(json.dumps(one) + "\n" for one in row))
    return file


def test_each_file_keeps_its_shape_and_has_its_weight(tmp_path) -> None:
    a, b = table(tmp_path, "a.csv", 100), jsonl(tmp_path, "b.jsonl", 60)
    out = Output(Path(f"{a}:2,{b}:0.5"), test_ratio=0.2)
    by_file = {one["file"]: one for one in out.numbers["sources"]}
    assert [one["shape"] for one in by_file.values()] == ["qa", "alpaca"]
    assert (by_file["a.csv"]["rows"], by_file["b.jsonl"]["rows"]) == (100, 60)
    assert (by_file["a.csv"]["weight"], by_file["b.jsonl"]["weight"]) == ("2", "0.5")
    assert out.numbers["not_drawn"] == 30 and out.adds_up()
    written = [row["source"]["file"] for row in out.splits["train"]]
    for name, one in by_file.items():
        assert written.count(name) == one["train_rows"] > 0
    texts = [row["messages"][0]["content"] for row in out.splits["train"]]
    assert {texts.count(text) for text in texts if text.startswith("a.csv")} == {2}
    kept_for_the_test = [row["id"] for row in out.splits["test"]]
    assert len(set(kept_for_the_test)) == len(kept_for_the_test) > 0
    aside = [row for row in out.rejected if row["kind"] == "not_drawn"]
    assert len(aside) == 30 and aside[0]["reason"] == "not drawn: its file has weight 0.5"


def test_names_that_are_alike_are_told_apart(tmp_path) -> None:
    files = [table(tmp_path, f"{folder}/rows.csv", 5) for folder in ("x", "y")]
    out = Output(Path(",".join(map(str, files))))
    assert [one["file"] for one in out.numbers["sources"]] == ["x/rows.csv", "y/rows.csv"]
    assert all("weight" not in one for one in out.numbers["sources"])


@pytest.mark.parametrize("weight", ["0", "0.0", "1001"])
def test_a_weight_that_means_nothing(tmp_path, weight) -> None:
    with pytest.raises(SettingsError, match="no weight"):
        Output(Path(f"{table(tmp_path, 'a.csv', 5)}:{weight}"))


def test_commas_alone_name_nothing(tmp_path) -> None:
    with pytest.raises(SettingsError, match="data.input: empty"):
        prepare(Data(input=Path(",")))


def test_a_file_that_is_named_twice(tmp_path) -> None:
    file = table(tmp_path, "a.csv", 5)
    for written in (f"{file},{file}", f"{tmp_path},{file}"):
        with pytest.raises(SettingsError, match="stands there twice"):
            Output(Path(written))
