"""What is seen of a run: the bar on a real terminal, lines elsewhere, and report packages."""

import os
import pty
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from rich.cells import cell_len
from running import refused, succeeds
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from slimtune.training import callbacks, prechecks
from slimtune.training.callbacks import ProgressShown

RICHS_CLOCK = "rich.console.monotonic"


def watched(folder: Path, *, steps: int = 8, **parts: float) -> None:
    """Four steps as the Trainer would announce them, one every 300 ms by a clock of their own."""
    shown = ProgressShown(lambda: 5000)
    state, control = TrainerState(max_steps=steps), TrainerControl()
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
    clock = Mock(return_value=100.0)
    with patch.object(callbacks, "time", Mock(monotonic=clock)), patch(RICHS_CLOCK, clock):
        shown.on_train_begin(args, state, control)
        for state.global_step in range(1, 5):
            clock.return_value += 0.3
            shown.on_log(args, state, control, {"loss": 1.2345, "learning_rate": 1e-3} | parts)
            shown.on_step_end(args, state, control)
        shown.on_log(args, state, control, {"eval_loss": 0.9876})
        shown.on_train_end(args, state, control)


def on_terminal(columns: int, watch: Callable[[], None]) -> str:
    """What is seen of it there, each state of the bar a line of its own."""
    child, terminal = pty.fork()
    if child == 0:
        sys.stderr = os.fdopen(2, "w", closefd=False)
        os.environ |= {"COLUMNS": str(columns), "TERM": "xterm-256color"}
        try:
            watch()
        finally:
            os._exit(0)
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    os.waitpid(child, 0)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


def test_a_terminal_shows_one_bar_with_loss_speed_memory_and_time_left(tmp_path: Path) -> None:
    text = on_terminal(120, lambda: watched(tmp_path, kd=2.5, ce=0.25))
    last = [line for line in re.split(r"[\r\n]+", text) if "4/8" in line][-1]
    wanted = r"loss 1\.2345  kd 2\.5000  ce 0\.2500  4167 tokens/s  [\d.]+ [KMG]B +0:00:02 left"
    assert re.search(wanted, last), last
    assert "step 4/8  validation loss 0.9876" in text


@pytest.mark.parametrize("parts", [{}, {"kd": 2.5, "ce": 0.25}])
def test_80_columns_have_room_for_the_bar_and_no_figure_is_cut(tmp_path: Path, parts) -> None:
    text = on_terminal(80, lambda: watched(tmp_path, steps=25_000, **parts))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text) if "training" in line]
    wanted = r"training \S+ +4/25000 loss 1\.2345  4167 tokens/s  [\d.]+ [KMG]B \d:\d\d:\d\d left"
    assert re.fullmatch(wanted, lines[-1]), lines[-1]
    assert max(map(cell_len, lines)) <= 80 and "…" not in text


def test_without_a_terminal_it_is_lines(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "slimtune")
    watched(tmp_path)
    line = next(line for line in caplog.messages if line.startswith("step 4/8"))
    assert re.search(r"loss 1\.2345 .* 4167 tokens/s .* [KMG]B +0:00:01 left", line), line


def test_a_missing_report_package_is_found_out_before_any_work(
    settings, rows, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    words = ("--report-to", "trackio", "--output-dir", tmp_path)
    error = refused(4, "the package trackio is not installed", "train_lora", *settings, *words)
    assert "pip install trackio" in error[-1] and not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_the_losses(settings, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    words = ("--report-to", "tensorboard", "--epochs", 1, "--output-dir", tmp_path / "out")
    succeeds("train_lora", *settings, *words)
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))


def test_curves_for_tensorboard_outlive_the_checkpoints(
    settings, rows, tmp_path, monkeypatch
) -> None:
    """They lay among these, and were removed with them when the result was there."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    shown = Mock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Mock(SummaryWriter=shown))
    monkeypatch.setattr(prechecks, "is_installed", lambda name: True)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    words = ("--report-to", "tensorboard", "--epochs", 1, "--output-dir", tmp_path / "out")
    said = succeeds("train_lora", *settings, *words).err
    folder = Path(shown.call_args.kwargs["log_dir"])
    assert folder.parent == tmp_path / "out" / "runs"
    assert f"tensorboard --logdir {tmp_path / 'out' / 'runs'}" in said
    assert any(call.args[0] == "train/loss" for call in shown().add_scalar.call_args_list)


def test_in_a_file_it_is_a_line_every_tenth_at_most(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "slimtune")
    shown = ProgressShown(lambda: 5000)
    state, control = TrainerState(max_steps=333), TrainerControl()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    shown.on_train_begin(args, state, control)
    for state.global_step in range(1, 334):
        shown.on_log(args, state, control, {"loss": 1.0, "learning_rate": 1e-3})
        shown.on_log(args, state, control, {"eval_loss": 1.0})
    lines = [line for line in caplog.messages if line.startswith("step ")]
    for kind in ("  loss", "validation loss"):
        told = [line for line in lines if kind in line]
        assert len(told) == 10 and told[-1].startswith("step 333/333")
