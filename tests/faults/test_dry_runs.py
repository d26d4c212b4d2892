"""A dry run opens nothing for writing outside the temporary folder, and leaves that empty.

Python tells an audit hook of every file that it opens, makes, moves or removes (PEP 578), of every
address it connects to or listens on, and of every program it starts; a hook stays for good, so each
script runs in a fork. What libraries in C and Rust open is not told: the folders are compared, and
where strace is installed, the kernel is asked.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
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


_CALLS = "trace=open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,"
_CALLS += "link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,chown,fchownat,utimensat"
_CALL = re.compile(r'(?:\d+ +)?(\w+)\((?:\w+<([^>]*)>, )?"([^"]*)"(.*)')  # -y names its folder


def told_by_the_kernel(work: Callable[[], int], file: Path) -> Told:
    """What strace sees of `work` in a fork of this process: calls that change or write a file."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sys.dont_write_bytecode = True
            settle_torch()
            os.read(reading, 1)  # until it is watched
            os._exit(work())
        finally:
            os._exit(99)
    words = ["strace", "-f", "-y", "-q", "-s", "4096", "-e", _CALLS, "-o", file, "-p", str(child)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as watching:
        while not _is_traced(child) and watching.poll() is None:
            time.sleep(0.01)
        os.write(writing, b"x")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = watching.stderr.read()
    if "ptrace" in said and not file.stat().st_size:
        pytest.skip("nobody may be watched here")
    assert code == 0
    calls = filter(None, map(_CALL.match, file.read_text("utf-8", "replace").splitlines()))
    here = os.getcwd()
    return [
        (c[1], os.path.normpath(os.path.join(c[2] or here, c[3]))) for c in calls if _changes(c)
    ]


def _is_traced(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return "TracerPid:\t0\n" not in status


def _changes(call: re.Match[str]) -> bool:
    if " = -1 " in call[4]:
        return False
    return not call[1].startswith("open") or bool(re.search("O_WRONLY|O_RDWR|O_CREAT", call[4]))


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


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("script", [*SCRIPTS, "prepare_data, really"])
def test_the_kernel_sees_no_file_opened_for_writing(
    script, prepared, monkeypatch, tmp_path
) -> None:
    temporary = prepared.parent / "temporary"
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    script, really = script.split(",")[0], script.endswith("really")
    words = ["--config", prepared / "config.yaml", *SCRIPTS[script]]
    words += ["--output-dir", tmp_path / "new"] if really else ["--dry-run"]
    told = told_by_the_kernel(lambda: run(script, *words).code, tmp_path / "calls")
    if really:  # the control: it would be seen
        assert ("rename", str(tmp_path / "new/train.partial")) in told
    else:
        assert outside(told, temporary) == []


def test_the_hook_sees_what_a_run_writes(prepared, monkeypatch) -> None:
    monkeypatch.chdir(prepared)
    words = ["--config", prepared / "config.yaml", "--output-dir", "written"]
    code, told = told_by(lambda: run("prepare_data", *words).code)
    shutil.rmtree(prepared / "written")
    assert code == 0
    seen = {(event, Path(path).name) for event, path in told}
    assert ("open", ".train_run.json.lock") in seen and ("os.rename", "train.partial") in seen
