"""Runs that are stopped from outside.

kill -9 between two outputs: the same command goes on, and ends with the same bytes. Ctrl-C while a
child process imports: one word to the user, no traceback.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psutil
import pytest
from running import files_under, killed, refused, succeeds
from tiny_folders import write_tiny_llama

from slimtune.sample import parts

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork of this process is killed"),
]


def nth(number: int) -> Callable[..., bool]:
    """Yes to one call, and to no other."""
    calls = count(1)
    return lambda *_: next(calls) == number


def made(folder: Path) -> dict[str, bytes]:
    """The files but for the records, which name times."""
    return {name: data for name, data in files_under(folder).items() if "run.json" not in name}


MOVES = 8  # a record, the folder of three files, each of them and the record; a record, the models


def test_a_sample_killed_before_any_of_its_moves_goes_on(tmp_path, monkeypatch) -> None:
    for name in parts.SAMPLE_MODELS:
        write_tiny_llama(tmp_path / "weights" / name, hidden=64)
    monkeypatch.setattr(parts, "WEIGHTS", tmp_path / "weights")

    def words(name: str) -> tuple[object, ...]:
        quick = ("create_sample_data", "--rows", 60, "--text-lines", 10)
        folder = tmp_path / name
        return *quick, "--output-dir", folder / "data", "--models-dir", folder / "sample"

    succeeds(*words("whole"))
    for move in range(1, MOVES + 1):
        killed("os.replace", nth(move), *words(f"killed{move}"))
        succeeds(*words(f"killed{move}"))
        assert made(tmp_path / f"killed{move}") == made(tmp_path / "whole")
        refused(2, "exists already", *words(f"killed{move}"))


STAGES = ("pruned", "teacher_cache", "distilled", "lora_adapter", "final")


@pytest.mark.slow
def test_a_combined_run_killed_before_each_output_goes_on(settings, merged, tmp_path) -> None:
    """What quickstart.py does the second time: the same with --resume."""

    def words(name: str) -> tuple[object, ...]:
        quick = ("train_pruned_distilled", *settings, "--epochs", 1, "--distillation-epochs", 1)
        folders = ("--output-dir", tmp_path / name, "--cache-dir", tmp_path / f"{name}-cache")
        return *quick, *folders, "--stages", "prune,cache,distil,lora,merge"

    succeeds(*words("whole"))
    resumed = words("killed")
    for stage in STAGES:
        place = "slimtune.artifacts.stages._swap"
        killed(place, lambda _, final, stage=stage: final.name == stage, *resumed)
        resumed = words("killed")
        if stage != "pruned":  # until then there is nothing to resume
            resumed = (*resumed, "--resume")
        assert (tmp_path / "killed" / f"{stage}.partial/run.json").is_file()
    succeeds(*resumed)
    for stage in STAGES:
        whole, one = (tmp_path / name / stage for name in ("whole", "killed"))
        weights = [file.name for file in whole.glob("*.safetensors")]
        assert weights or stage == "teacher_cache"
        for name in weights:
            assert (one / name).read_bytes() == (whole / name).read_bytes(), f"{stage}/{name}"
    assert not list((tmp_path / "killed").rglob("*.partial"))


# What is handed to a comparison's process is found in a module that takes long to import there.
SLOW_IMPORT = """
import multiprocessing, pathlib, time
if multiprocessing.parent_process():
    print("importing", flush=True)
    while not pathlib.Path("go on").exists():
        time.sleep(0.01)
class Candidate:
    label = "base"
"""
COMPARISON = """
import slow_import
from slimtune.evaluation.comparison import _in_child
try:
    _in_child(slow_import.Candidate(), None)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.usefixtures("signals_as_in_a_terminal")
def test_ctrl_c_while_a_comparisons_process_imports(tmp_path) -> None:
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    library = str(Path(parts.__file__).parents[2])
    pipe, paths = subprocess.PIPE, os.pathsep.join([str(tmp_path), library])
    with subprocess.Popen(
        [sys.executable, "-c", COMPARISON],
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:
        assert process.stdout.readline() == "importing\n"
        for one in (*psutil.Process(process.pid).children(), process):
            one.send_signal(signal.SIGINT)  # a terminal sends it to all
        (tmp_path / "go on").touch()
        assert process.communicate() == ("interrupted\n", "")
