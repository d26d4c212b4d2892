"""Where fcntl, resource and glibc do not exist, the scripts work without them.

Windows cannot be tried here: a process is made that finds none of the three, nor /proc.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from slimtune.config import SCRIPTS

FINETUNE = Path(__file__).resolve().parents[3] / "finetune"
HIDDEN = """
import ctypes, runpy, sys
from pathlib import Path
import psutil  # on Linux, though not on Windows, it wants `resource` itself
sys.path.insert(0, sys.argv.pop(1))
for module in ("fcntl", "resource"):
    sys.modules[module] = None
load = ctypes.CDLL.__init__
def without_libc(library, name, *options, **more):
    if name == "libc.so.6":
        raise OSError(name)
    load(library, name, *options, **more)
ctypes.CDLL.__init__ = without_libc
from slimtune.machine import process
process._STATUS, process._CLEAR = "/nowhere/{}", "/nowhere"
"""
SCRIPT = HIDDEN + "sys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
LOCKED_TWICE = (
    HIDDEN
    + """
from slimtune.console import LockedError
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


def python(code: str, *words: object) -> str:
    """What a process without Unix says; it must end well."""
    command = [sys.executable, "-c", code, str(FINETUNE), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr or "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_does(script) -> None:
    assert f"finetune/{script}.py" in python(SCRIPT, FINETUNE / f"{script}.py", "--help")


def test_two_stages_run_and_say_what_they_took(tmp_path) -> None:
    folders = ("--output-dir", tmp_path / "data", "--models-dir", tmp_path / "sample")
    quick = ("--rows", 60, "--text-lines", 10)
    python(SCRIPT, FINETUNE / "create_sample_data.py", *quick, *folders)
    words = ("--input", tmp_path / "data/raw_data.json", "--output-dir", tmp_path / "rows")
    assert "wrote" in python(SCRIPT, FINETUNE / "prepare_data.py", *words)
    from slimtune.artifacts import run_of

    assert run_of(tmp_path / "sample")["peak_memory_bytes"] > 10_000_000
    assert run_of(tmp_path / "rows/train_train.jsonl")["peak_memory_bytes"] > 10_000_000
    left = [file.name for file in tmp_path.rglob("*.lock")]
    assert not [name for name in left if "holder" in name]


def test_an_output_is_still_locked_and_its_holder_named(tmp_path) -> None:
    said = python(LOCKED_TWICE, tmp_path / "out")
    assert "since noon: one" in said and "free again" in said
