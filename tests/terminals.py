"""What a process says on a real terminal of so many columns, or into a pipe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
