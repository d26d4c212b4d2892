"""Cards, pictures, reporters: what fails there is left out with a word, and the stage goes on."""

import errno
import json
import shutil
import sys

import pytest
from running import run, succeeds
from transformers import TrainerCallback

from slimtune.console import decoration
from slimtune.errors import InputError, QualityError, ResourceError
from slimtune.report import model_card
from slimtune.report.data_report import write_data_report
from slimtune.training import fitting
from slimtune.training.callbacks import Reporting

QUICK = ("--epochs", 1, "--evaluations-per-epoch", 1)


@pytest.fixture(autouse=True)
def said(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "slimtune")
    return caplog


@pytest.mark.parametrize("error", [InputError("a", "b", "c"), ValueError("torn\ntwo"), OSError(5)])
def test_what_fails_is_left_out_in_one_line(said, error) -> None:
    with decoration("loss.png"):
        raise error
    (line,) = said.messages
    assert line.startswith("caution: loss.png is left out (") and "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "full"),
        MemoryError(),
        QualityError("a", "b", "c"),
        ResourceError("a", "b", "c"),
    ],
)
def test_what_ends_a_stage_ends_it_here_too(said, error) -> None:
    with pytest.raises(type(error)), decoration("loss.png"):
        raise error
    assert not said.messages


@pytest.mark.parametrize("content", ["[1, 2]", "7", "{torn", "\x00", '{"kept": [1], "rows_in": 3}'])
def test_a_data_report_that_is_none_fails_no_training(
    settings, rows, tmp_path, said, content
) -> None:
    shutil.copytree(rows, tmp_path / "rows")
    (tmp_path / "rows" / "data_report.json").write_text(content, encoding="utf-8")
    train, validation = (tmp_path / f"rows/train_{name}.jsonl" for name in ("train", "validation"))
    words = ("--train-data", train, "--val-data", validation, "--output-dir", tmp_path / "out")
    succeeds("train_lora", *settings, *words, *QUICK)
    card = (tmp_path / "out/lora_adapter/README.md").read_text(encoding="utf-8")
    assert ("`data report, rows_in` | 3" in card) == ("rows_in" in content)
    cautions = [line for line in said.messages if "data_report.json" in line]
    assert len(cautions) == ("rows_in" not in content), cautions


def test_no_matplotlib_and_no_card_fail_no_training(
    settings, rows, tmp_path, said, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(model_card, "_table", lambda *_: 1 / 0)
    succeeds("train_lora", *settings, "--output-dir", tmp_path, *QUICK)
    files = {file.name for file in (tmp_path / "lora_adapter").iterdir()}
    assert "loss.png" not in files and {"metrics.jsonl", "run.json"} <= files
    assert "caution: loss.png is left out" in said.text
    assert "caution: the model card is left out (ZeroDivisionError" in said.text


def test_a_full_disk_is_no_decoration(settings, rows, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_card, "write_model_card", full)
    assert run("train_lora", *settings, "--output-dir", tmp_path, *QUICK).code == 4


class _Failing(TrainerCallback):
    """A reporter that sets itself up, and loses its server at the first figure."""

    events: list[str] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.events.append("begin")

    def on_log(self, *_: object, **__: object) -> None:
        self.events.append("log")
        raise ConnectionError("no server")


def test_a_reporter_that_fails_is_heard_of_once(
    settings, rows, tmp_path, said, monkeypatch
) -> None:
    monkeypatch.setattr(fitting, "get_reporting_integration_callbacks", lambda _: [_Failing])
    monkeypatch.setattr("slimtune.training.prechecks.is_installed", lambda _: True)
    words = ("--report-to", "wandb", "--output-dir", tmp_path)
    succeeds("train_lora", *settings, *words, *QUICK)
    assert _Failing.events == ["begin", "log"]
    lost = "caution: training.report_to: wandb is left out (ConnectionError: no server)"
    assert said.messages.count(lost) == 1


def test_a_reporter_hears_every_event() -> None:
    heard = []
    reporter = TrainerCallback()
    reporter.on_evaluate = lambda *told, **more: heard.append((told, more))
    Reporting("x", reporter).on_evaluate("args", "state", "control", metrics=1)
    assert heard == [(("args", "state", "control"), {"metrics": 1})]


def test_the_picture_of_a_data_report_may_fail(rows, tmp_path, said, monkeypatch) -> None:
    numbers = json.loads((rows / "data_report.json").read_text(encoding="utf-8"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_data_report(numbers, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "data_report.json",
        "data_report.md",
    ]
    assert "caution: data_report.png is left out" in said.text
