"""What a process says on a real terminal of so many columns, or into a pipe."""

import importlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from running import compared_here, settle_torch, small_pictures

from slimtune.console import start_logging
from slimtune.script import _ENVIRONMENT, _run

FINETUNE = Path(__file__).parents[1] / "finetune"
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def said(code: str, *arguments: str, columns: int | None) -> list[str]:
    """The lines of stdout and stderr of `python -c code`; None is a pipe, stdout alone."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    env = kept | {"PYTHONPATH": str(FINETUNE), "PYTHONIOENCODING": "utf-8", "TERM": "xterm"}
    command = [sys.executable, "-c", code, *arguments]
    if columns is None:
        done = subprocess.run(command, env=env, capture_output=True, check=True)
        return done.stdout.decode("utf-8").splitlines()
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        told = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert child.returncode == 0, told.decode()
    return _COLOURS.sub("", told.decode("utf-8")).splitlines()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so where the child's end is closed
        return b""


def screen(script: str, *arguments: object, typed: str = "") -> list[str]:
    """The lines that a script shows on a terminal of 80 columns, in a fork of this process; of what
    is drawn again in one place, such as a bar, each state is a line. `typed` is not shown."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    sys.stdout.flush()
    child, terminal = pty.fork()
    if child == 0:
        try:
            termios.tcsetwinsize(0, (24, 80))
            _without_echo(termios)
            _show(script, [str(one) for one in arguments])
        finally:
            os._exit(0)
    os.write(terminal, typed.encode())
    told = b"".join(iter(lambda: _read(terminal), b""))
    os.waitpid(child, 0)
    os.close(terminal)
    text = _MOVES.sub("", told.decode("utf-8")).replace("\r\n", "\n")
    return [line.rstrip() for line in re.split(r"[\r\n]", text)]


_MOVES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def _without_echo(termios: Any) -> None:
    modes = termios.tcgetattr(0)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, modes)


def _show(script: str, words: list[str]) -> None:
    """Run it here, its words to the terminal that 0, 1 and 2 are."""
    module = importlib.import_module(script)
    os.environ |= {"TERM": "xterm-256color"} | _ENVIRONMENT
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = [module.__file__, *words]
    if "torch" in sys.modules:
        settle_torch()
    if "transformers" in sys.modules:  # which reads _ENVIRONMENT where it is imported
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    start_logging()
    helped = suppress(SystemExit)  # by --help
    with patch("slimtune.script.leave_out_unused"), small_pictures(), compared_here(), helped:
        _run(module.main, module.__doc__, words)
    sys.stdout.flush()
