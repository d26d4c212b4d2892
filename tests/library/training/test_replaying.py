"""General rows among those of the task: how many, which, and none that evaluation asks."""

import json
import logging
from pathlib import Path

import pytest
from tiny_folders import write_tiny_llama

from slimtune.config import Training
from slimtune.data.general_sets import PROJECT, WORLD, general_set, rows_file
from slimtune.errors import InputError
from slimtune.models import tokenizers
from slimtune.sample.parts import WEIGHTS
from slimtune.training.dataset import Dataset, read_dataset
from slimtune.training.replaying import replay_file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base"), hidden=64)


def written(file: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [{"instruction": one, "input": "", "output": two} for one, two in pairs]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def dataset(base: Path, folder: Path, rows: int = 18, **settings) -> Dataset:
    file = written(folder / "rows.jsonl", [(f"What is {n}?", "A number.") for n in range(rows)])
    return read_dataset(str(base), "llama2", Training(train_data=file, **settings))


def texts(found: Dataset) -> list[str]:
    replayed = found.train[len(found.train) - found.replayed :]
    return [found.tokenizer.decode(one.input_ids) for one in replayed]


def test_the_share_is_of_all_rows(base, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO, "slimtune"):
        found = dataset(base, tmp_path, replay=0.1)
    assert (len(found.train), found.replayed) == (20, 2)
    assert found.summary()["replayed_rows"] == 2
    assert [one.index for one in found.train] == list(range(20))
    assert "2 of 20 rows (10 %) are general ones" in caplog.text
    assert found.named["replayed rows"] == rows_file(PROJECT)
    assert dataset(base, tmp_path, replay=0.1).train == found.train
    assert dataset(base, tmp_path, replay=0.1, seed=7).train != found.train


def test_without_it_nothing_changes(base, tmp_path) -> None:
    found = dataset(base, tmp_path)
    assert len(found.train) == 18 and found.replayed == 0
    assert "replayed rows" not in found.named and "replayed_rows" not in found.summary()


def test_each_row_comes_once_before_any_comes_again(base, tmp_path) -> None:
    few = written(tmp_path / "few.jsonl", [(f"Say {one}.", one) for one in "abc"])
    found = dataset(base, tmp_path, replay=0.25, replay_data=few)
    assert found.replayed == 6 and len(set(texts(found))) == 3


def test_plain_text_is_learned_whole(base, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat.\n\n今天天气很好。\n", encoding="utf-8")
    found = dataset(base, tmp_path, replay=0.1, replay_data=text)
    last = found.train[-1]
    assert found.replayed == 2 and last.labels == last.input_ids


def test_what_evaluation_asks_is_left_out(base, tmp_path, caplog) -> None:
    item = general_set(PROJECT).items[0]
    file = written(tmp_path / "own.jsonl", [(item.question.upper(), "12"), ("Say a.", "a")])
    with caplog.at_level(logging.INFO, "slimtune"):
        found = dataset(base, tmp_path, replay=0.3, replay_data=file)
    assert "1 rows left out, evaluation asks them" in caplog.text
    assert len(set(texts(found))) == 1
    written(file, [(item.question, "12")])
    with pytest.raises(InputError, match="nothing to replay"):
        dataset(base, tmp_path, replay=0.3, replay_data=file)


def test_the_sample_model_replays_its_own_world() -> None:
    tokenizer = tokenizers.load_tokenizer(WEIGHTS / "base")
    assert replay_file(Training(replay=0.1), tokenizer) == rows_file(WORLD)
    assert replay_file(Training(), tokenizer) is None
