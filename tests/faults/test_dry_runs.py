"""A dry run opens nothing for writing outside the temporary folder, and leaves that empty.

Python tells an audit hook of every file that it opens, makes, moves or removes (PEP 578), of every
address it connects to or listens on, and of every program it starts; a hook stays for good, so each
script runs in a fork. What libraries in C and Rust open is not told: the folders are compared.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import everything
from running import run, settle_torch

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("in_process"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="each script runs in a fork"),
]

Told = list[tuple[str, str]]

SCRIPTS: dict[str, list[str]] = {
    "create_sample_data": [],
    "prepare_data": [],
    "train_lora": [],
    "model_pruning": [],
    "knowledge_distillation": [],
    "train_pruned_distilled": [],
    "evaluate_model": [],
    "convert_to_gguf": ["--create-modelfile", "--quantization", "F16,Q4_K_M"],
}
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
_CHANGES += ("os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "shutil.move")
_OUTWARD = ("socket.bind", "socket.connect", "socket.sendto", "subprocess.Popen", "os.exec")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def told_by(work: Callable[[], int]) -> tuple[int, Told]:
    """The exit code of `work`, and what it would change or reach, from a fork of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told: Told = []
            sys.dont_write_bytecode = True
            shutil._use_fd_functions = False  # else names are told without their folders
            settle_torch()
            sys.addaudithook(lambda event, arguments: note(told, event, arguments))
            code = work()
            os.write(writing, json.dumps([code, told]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    code, told = json.loads(words)
    return code, [tuple(one) for one in told]


def note(told: Told, event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and flags & _WRITING:
            told.append((event, os.path.abspath(os.fsdecode(path))))
    elif event in _CHANGES:
        told.append((event, os.path.abspath(os.fsdecode(arguments[0]))))
    elif event in _OUTWARD:
        told.append((event, repr(arguments)))


def outside(told: Told, temporary: Path) -> Told:
    """A file without a name is opened by its folder's (O_TMPFILE)."""
    allowed = (str(temporary), os.devnull)
    return [one for one in told if not f"{one[1]}/".startswith(tuple(f"{a}/" for a in allowed))]


@pytest.fixture(scope="module")
def prepared(project, distilled, gguf, tmp_path_factory) -> Path:
    """A copy of the project with what all scripts have written; beside it a temporary folder."""
    home = tmp_path_factory.mktemp("prepared")
    (home / "temporary").mkdir()
    return shutil.copytree(project, home / "project")


@pytest.mark.parametrize("beside", ["nothing", "finished output"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_is_opened_for_writing(script, beside, prepared, monkeypatch) -> None:
    temporary = prepared.parent / "temporary"
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    words = ["--config", prepared / "config.yaml", *SCRIPTS[script], "--dry-run"]
    if beside == "nothing" and script != "evaluate_model":
        words += ["--output-dir", prepared / "new/output"]
    before = everything(prepared)
    code, told = told_by(lambda: run(script, *words).code)
    assert code == 0
    assert outside(told, temporary) == []
    assert everything(prepared) == before
    assert list(temporary.iterdir()) == []


def test_the_hook_sees_what_a_run_writes(prepared, monkeypatch) -> None:
    monkeypatch.chdir(prepared)
    words = ["--config", prepared / "config.yaml", "--output-dir", "written"]
    code, told = told_by(lambda: run("prepare_data", *words).code)
    shutil.rmtree(prepared / "written")
    assert code == 0
    seen = {(event, Path(path).name) for event, path in told}
    assert ("open", ".train_run.json.lock") in seen and ("os.rename", "train.partial") in seen
