"""What Windows does not have is not there, and the scripts work without it.

Windows cannot be tried here: a process is made that finds no fcntl, resource or glibc, none of the
functions of `os` and `signal` that are Unix's alone, and no /proc.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slimtune.config import SCRIPTS

FINETUNE = Path(__file__).resolve().parents[3] / "finetune"
HIDDEN = """
import ctypes, importlib, json, os, runpy, signal, sys
from pathlib import Path
# On Linux, though not on Windows, these want what is hidden then.
import psutil, random, shutil, subprocess, tempfile
for package in filter(None, sys.argv.pop(1).split(",")):
    importlib.import_module(package)
sys.path.insert(0, sys.argv.pop(1))
for module in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[module] = None
for name in "fork pathconf getuid geteuid getloadavg sched_getaffinity killpg mkfifo".split():
    delattr(os, name)
for name in "SIGKILL SIGALRM SIGHUP SIGUSR1 SIGPIPE setitimer".split():
    delattr(signal, name)
load = ctypes.CDLL.__init__
def without_libc(library, name, *options, **more):
    if name == "libc.so.6":
        raise OSError(name)
    load(library, name, *options, **more)
ctypes.CDLL.__init__ = without_libc
from slimtune.machine import process
process._STATUS, process._CLEAR = "/nowhere/{}", "/nowhere"
"""
SCRIPTS_IN_TURN = (
    HIDDEN
    + """
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
)
LOCKED_TWICE = (
    HIDDEN
    + """
from slimtune.errors import LockedError
from slimtune.machine.locks import only_writer
with only_writer(Path(sys.argv[1]), "noon", "one"):
    try:
        only_writer(Path(sys.argv[1]), "noon", "two").__enter__()
    except LockedError as error:
        print(error.why)
with only_writer(Path(sys.argv[1]), "noon", "three"):
    print("free again")
"""
)


def python(code: str, *words: object, first: str = "") -> str:
    """What a process without Unix says; it must end well. `first` is imported with Unix there."""
    command = [sys.executable, "-c", code, first, str(FINETUNE), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr or "Warning" not in done.stderr, done.stderr
    return done.stdout


def scripts(*calls: tuple[object, ...], first: str = "") -> str:
    """What scripts say that run one after another in one such process."""
    lines = [[str(FINETUNE / f"{script}.py"), *map(str, words)] for script, *words in calls]
    return python(SCRIPTS_IN_TURN, json.dumps(lines), first=first)


def test_every_script_says_what_it_does() -> None:
    said = scripts(*((script, "--help") for script in SCRIPTS))
    assert all(f"finetune/{script}.py" in said for script in SCRIPTS)


@pytest.mark.slow
def test_every_script_says_what_it_would_take(settings, distilled, adapter) -> None:
    """The packages are others on Windows: these, which want Unix, are there already."""
    dry = ((script, *settings, "--overwrite", "--debug", "--dry-run") for script in SCRIPTS)
    said = scripts(*dry, first="torch,transformers,peft,accelerate,sacrebleu")
    assert said.count("nothing was written") == len(SCRIPTS)


def test_two_stages_run_and_say_what_they_took(tmp_path) -> None:
    folders = ("--output-dir", tmp_path / "data", "--models-dir", tmp_path / "sample")
    quick = ("--rows", 60, "--text-lines", 10)
    words = ("--input", tmp_path / "data/raw_data.json", "--output-dir", tmp_path / "rows")
    said = scripts(("create_sample_data", *quick, *folders), ("prepare_data", *words))
    assert said.count("next: ") == 2
    from slimtune.artifacts import run_of

    assert run_of(tmp_path / "sample")["peak_memory_bytes"] > 10_000_000
    assert run_of(tmp_path / "rows/train_train.jsonl")["peak_memory_bytes"] > 10_000_000
    left = [file.name for file in tmp_path.rglob("*.lock")]
    assert not [name for name in left if "holder" in name]


def test_an_output_is_still_locked_and_its_holder_named(tmp_path) -> None:
    said = python(LOCKED_TWICE, tmp_path / "out")
    assert "since noon: one" in said and "free again" in said
