"""A comparison killed with -9 goes on where it was, and ends with the very same figures."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from running import compared_here, files_under, killed, succeeds

from slimtune.evaluation import drafts
from slimtune.inference import generation, kept_answers
from slimtune.inference.decoding import Decoding

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]


@pytest.fixture(scope="module", autouse=True)
def every_answer_is_decoded() -> Iterator[None]:
    """Also those that scoring has told: the model knows its rows by heart."""
    with patch.object(drafts, "LEAD", math.inf):
        yield


@pytest.fixture(scope="module")
def words(settings, adapter) -> tuple:
    """A comparison in batches of one row, so that there is something to interrupt."""
    return "evaluate_model", *settings, "--token-budget", "32", "--output"


@pytest.fixture(scope="module")
def count(rows) -> int:
    return len((rows / "train_test.jsonl").read_text("utf-8").splitlines())


@pytest.fixture(scope="module")
def everything(count) -> int:
    """The lines of two models: losses, answers, the closing line."""
    return 2 * (2 * count + 1)


@pytest.fixture(scope="module")
def interrupted(words, everything, tmp_path_factory) -> Path:
    """The folder of a run that was killed with -9 at 80 %, among the second model's answers."""
    folder = tmp_path_factory.mktemp("killed")
    lines = iter(range(1, everything + 1))

    def in_the_middle_of_a_line(kept: kept_answers.Predictions, *_: object) -> bool:
        if next(lines) < round(0.8 * everything):
            return False
        with kept.file.open("a", encoding="ascii") as handle:
            handle.write('\n{"Generation:half a li')
        return True

    with compared_here():
        keep = "slimtune.inference.kept_answers.Predictions._keep"
        killed(keep, in_the_middle_of_a_line, *words, folder / "r.csv")
    return folder


def counted_answers(monkeypatch) -> list[int]:
    """Grows by the number of prompts of every batch that is really generated."""
    asked: list[int] = []
    real = generation._answers

    def counting(model, prompts, *arguments):
        asked.append(len(prompts))
        return real(model, prompts, *arguments)

    monkeypatch.setattr(generation, "_answers", counting)
    return asked


def figures(folder: Path) -> tuple[bytes, str]:
    """The CSV, and the metrics without what a clock or the system measured."""
    metrics = json.loads((folder / "r_metrics.json").read_text("utf-8"))
    for model in metrics["models"]:
        for name in [name for name in model["cost"] if "second" in name or "memory" in name]:
            del model["cost"][name]
    return (folder / "r.csv").read_bytes(), json.dumps(metrics, ensure_ascii=False)


def kept_lines(folder: Path) -> int:
    files = (folder / "r.answers.partial").glob("*.jsonl")
    return sum(len(file.read_text().splitlines()) - 1 for file in files)


def test_killed_at_80_percent_it_goes_on_and_loses_nothing(
    words, interrupted, count, everything, tmp_path, monkeypatch
):
    resumed = shutil.copytree(interrupted, tmp_path / "resumed")
    assert not (resumed / "r_run.json").exists()
    assert kept_lines(resumed) == round(0.8 * everything)  # the last of them is torn
    asked = counted_answers(monkeypatch)
    succeeds(*words, resumed / "r.csv")
    assert sum(asked) == everything // 2 + 2 * count - (round(0.8 * everything) - 1)
    succeeds(*words, tmp_path / "whole" / "r.csv")
    assert figures(resumed) == figures(tmp_path / "whole")
    assert files_under(resumed).keys() == files_under(tmp_path / "whole").keys()
    assert not (resumed / "r.answers.partial").exists()


@pytest.mark.parametrize(
    ("flags", "models"),
    [
        (("--max-new-tokens", 5), 2),
        (("--overwrite",), 2),
        (("--overwrite", "--resume"), 1),
    ],
    ids=str,
)
def test_other_settings_and_overwrite_ask_again(
    flags, models, words, interrupted, count, tmp_path, monkeypatch
):
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    asked = counted_answers(monkeypatch)
    succeeds(*words, folder / "r.csv", *flags)
    assert count * (models - 1) < sum(asked) <= count * models


def test_weights_that_changed_are_asked_again(tmp_path):
    from tiny_folders import write_tiny_llama

    from slimtune.inference.questions import Candidate, Job, Question

    folder = write_tiny_llama(tmp_path / "base", hidden=64)
    question = Question("r", ({"role": "user", "content": "?"},), ("!",))
    job = Job((question,), "", 64, Decoding(8), kept_in=tmp_path)
    before = kept_answers.Predictions.of(Candidate("base", str(folder)), job)
    again = kept_answers.Predictions.of(Candidate("base", str(folder)), job)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    after = kept_answers.Predictions.of(Candidate("base", str(folder)), job)
    assert before.file == again.file != after.file
    warm = replace(job, decoding=Decoding(8, temperature=0.7))
    files = {
        kept_answers.Predictions.of(Candidate("base", str(folder)), one).file
        for one in (job, warm, replace(warm, decoding=replace(warm.decoding, seed=1)))
    }
    assert len(files) == 3  # an answer belongs to the decoding that it was chosen by
