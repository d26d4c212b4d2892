"""A process's peak of memory, malloc's threshold, and the packages that a run leaves out."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running import imported_by

from slimtune.config import Config
from slimtune.machine import process
from slimtune.machine.process import (
    ctrl_c_comes,
    ctrl_c_waits,
    forget_peak,
    large_blocks_returned,
    leave_out_unused,
    peak_memory,
    return_free_blocks,
    return_large_blocks,
    unused_packages,
)
from slimtune.machine.tricks import SWITCH, Nested

ADAPTER = ("--epochs", 1, "--lora-r", 2)
FINETUNE = Path(process.__file__).parents[2]


def with_settings(section: str, **settings: str) -> Config:
    return Config.model_validate({section: settings})


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (Config(), {"datasets", "bitsandbytes"}),
        (with_settings("training", optimizer="adafactor"), {"datasets", "bitsandbytes"}),
        (with_settings("training", optimizer="paged_adamw_32bit"), {"datasets"}),
        (with_settings("training", optimizer="lion_8bit"), {"datasets"}),
        (with_settings("model", quantization="int8"), {"datasets"}),
        (with_settings("distillation", teacher_quantization="nf4"), {"datasets"}),
    ],
)
def test_bitsandbytes_stays_where_weights_or_optimizer_are_its_own(config, left_out) -> None:
    assert unused_packages(config) == left_out


def test_training_as_usual_imports_neither_bitsandbytes_nor_pandas(
    settings, rows, tmp_path
) -> None:
    there = imported_by("train_lora", *settings, *ADAPTER, "--output-dir", tmp_path / "out")
    assert {"peft", "transformers.trainer"} <= there
    assert not there & {"bitsandbytes", "datasets", "pandas", "pyarrow"}


@pytest.mark.long
def test_training_that_needs_bitsandbytes_has_it(settings, rows, tmp_path) -> None:
    """Weights and optimizer of its own in one process: starting a second takes seconds. In this
    process test_four_bits.py and test_optimizers.py train with them.
    """
    flags = ("--use-quantization", "--optimizer", "adamw_8bit")
    words = (*settings, *ADAPTER, *flags, "--output-dir", tmp_path / "out")
    assert "bitsandbytes" in imported_by("train_lora", *words)


def test_a_package_is_left_out_unless_the_trick_is_off(monkeypatch) -> None:
    modules = {name: module for name, module in sys.modules.items() if name != "datasets"}
    monkeypatch.setattr(sys, "modules", modules)
    monkeypatch.setenv(SWITCH, "unused_packages")
    leave_out_unused(Config())
    assert "datasets" not in modules
    monkeypatch.delenv(SWITCH)
    leave_out_unused(Config())
    assert modules["datasets"] is None


@pytest.fixture
def thresholds(monkeypatch):
    """What malloc's threshold is set to, in MB; nobody uses the low one yet."""
    sizes = []

    class Library:
        def mallopt(self, option: int, size: int) -> int:
            assert option == -3
            sizes.append(size >> 20)
            return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(process, "_blocks", Nested(process._low_threshold))
    return sizes


def test_the_threshold_is_low_until_the_outermost_leaves(thresholds) -> None:
    @large_blocks_returned()
    def inner() -> None:
        assert thresholds == [1]

    with large_blocks_returned():
        inner()
        inner()
        assert thresholds == [1]
    assert thresholds == [1, 32]


def test_an_error_sets_the_threshold_back(thresholds) -> None:
    with pytest.raises(ZeroDivisionError), large_blocks_returned(), large_blocks_returned():
        raise ZeroDivisionError
    assert thresholds == [1, 32]


def test_lent_weights_keep_the_threshold_low_whatever_ends(thresholds) -> None:
    return_large_blocks()
    with large_blocks_returned():
        pass
    assert thresholds == [1]


def test_malloc_is_left_alone_when_the_trick_is_off(thresholds, monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "malloc")
    with large_blocks_returned():
        return_large_blocks()
    assert not thresholds


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_was_freed_between_blocks_in_use_goes_back(monkeypatch) -> None:
    """200 MB in pieces of 64 KB, below any threshold of malloc's, every second one freed."""
    pieces = [bytes([n % 251 + 1]) * (1 << 16) for n in range(3200)]
    kept = pieces[::2]
    del pieces
    monkeypatch.setenv(SWITCH, "malloc")
    return_free_blocks()
    before = _resident()
    monkeypatch.delenv(SWITCH)
    return_free_blocks()
    assert before - _resident() > 50e6 and len(kept) == 1600


def _resident() -> int:
    return psutil.Process().memory_info().rss


def test_onednn_is_told_to_keep_few_products_before_torch_comes() -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    code = f"""import os, sys
from slimtune import script
script._run = lambda *_: print(os.environ["{name}"], "torch" in sys.modules)
script.run(None, "")"""
    for own, expected in ({}, "64"), ({name: "5"}, "5"):
        environment = {key: value for key, value in os.environ.items() if key != name}
        environment |= {"PYTHONPATH": str(FINETUNE)} | own
        command = [sys.executable, "-c", code]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.split() == [expected, "False"]


def _no_library(name: str) -> object:
    raise OSError(name)


@pytest.mark.parametrize("load", [_no_library, lambda name: object()])
def test_another_c_library_is_left_alone(load, thresholds, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", load)
    with large_blocks_returned():
        pass
    return_free_blocks()
    assert not thresholds


def test_other_systems_load_no_c_library(thresholds, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with large_blocks_returned():
        pass
    assert not thresholds


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_a_peak_can_be_forgotten() -> None:
    block = bytearray(b"x") * 300_000_000
    high = peak_memory()
    del block
    forget_peak()
    assert peak_memory() < high - 200_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_a_child_has_a_peak_of_its_own() -> None:
    block = bytearray(b"x") * 300_000_000
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.readline()
        assert 1_000_000 < peak_memory(child.pid) < len(block) < peak_memory(os.getpid())


def test_without_resource_and_proc_psutil_says_it(monkeypatch) -> None:
    monkeypatch.setattr(process, "_STATUS", "/nowhere/{}")
    with_resource = peak_memory()
    monkeypatch.setattr(process, "resource", None)
    assert 1_000_000 < peak_memory() <= with_resource


@pytest.mark.usefixtures("signals_as_in_a_terminal")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot hold Ctrl-C back")
def test_ctrl_c_that_waited_comes_at_the_end() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
        signal.raise_signal(signal.SIGINT)
        reached.append("its end")
    with ctrl_c_waits():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), ctrl_c_comes():
            reached.append("never")
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), ctrl_c_comes():
            reached.append("never")
    assert reached == ["its end"]
