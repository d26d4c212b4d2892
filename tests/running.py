"""Scripts run as a user runs them, but in this process: torch is imported once for all tests."""

import importlib
import io
import os
import pkgutil
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from math import isfinite
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from slimtune.machine.locks import only_writer
from slimtune.script import _run


@dataclass(frozen=True)
class Ran:
    """How a script ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> list[str]:
        """The lines from `error:` to the one that tells the exit code, which is left out."""
        lines = self.err.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if not starts:
            return []
        assert re.fullmatch(rf"  exit code {self.code}: .+", lines[-1]), self.err
        return lines[starts[0] : -1]


def run(script: str, *arguments: object, stdin: str = "") -> Ran:
    """Run finetune/{script}.py with these command-line words and this standard input."""
    module = importlib.import_module(script)
    out, err = io.StringIO(), io.StringIO()
    typed = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    words = [str(word) for word in arguments]
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "stdin", typed),
        patch.object(sys, "argv", [module.__file__, *words]),
        patch("slimtune.script.leave_out_unused"),  # the next run in this process may want it
        small_pictures(),
    ):
        code = _run(module.main, module.__doc__, words)
    return Ran(int(code), out.getvalue(), err.getvalue())


_drawn: dict[str, bytes] = {}  # by what a picture tells of: the first such that was drawn


@contextmanager
def small_pictures() -> Iterator[None]:
    """Within, matplotlib draws few pixels and looks for no margins, and the second picture with the
    same words is a copy of the first: 0.1 s, then none, in place of 0.3, and most runs draw. Tests
    of the pictures themselves call what draws them.
    """
    from matplotlib.figure import Figure

    save = Figure.savefig

    def small(figure: Figure, file: Path, **options: object) -> None:
        told = [(axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
        finite = [all(map(isfinite, axes.dataLim.get_points().flat)) for axes in figure.axes]
        kind = str((told, finite))
        if kind in _drawn:
            file.write_bytes(_drawn[kind])
            return
        figure.set_layout_engine("none")
        save(figure, file, **options | {"dpi": 20})
        _drawn[kind] = file.read_bytes()

    with patch.object(Figure, "savefig", small):
        yield


@contextmanager
def compared_here() -> Iterator[None]:
    """Within, a comparison asks its models in this process and times each once.

    A child process for each model would import torch again, four seconds, and a speed is the
    median of fifteen runs. tests/library/evaluation/test_comparison.py does it as users do.
    """
    from slimtune.evaluation import comparison
    from slimtune.inference import generation

    here = patch.object(comparison, "_in_child", comparison._here)
    with here, patch.object(generation, "SPEED_RUNS", 1):
        yield


@contextmanager
def compared_in_forks() -> Iterator[None]:
    """Within, each model of a comparison has a fork of this process for its own.

    Users get a spawned one, which imports torch and transformers first, seven seconds each; that is
    what test_children_find_what_this_process_finds starts.
    """
    from slimtune.evaluation import comparison

    def forks(workers: int, context: object, **_: object) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, get_context("fork"), initializer=settle_torch)

    with patch.object(comparison, "ProcessPoolExecutor", forks):
        yield


def settle_torch() -> None:
    """For a process that was just forked: torch makes its pool of threads again at the first call,
    and two of the threads in which transformers loads weights may both be first: "Invalid thread
    pool!".
    """
    import torch  # not above: the process that hands out the tests needs none

    torch.set_num_threads(torch.get_num_threads())


def imported_by(script: str, *arguments: object) -> set[str]:
    """The modules in memory at the end of a script that ran in a process of its own."""
    file = importlib.import_module(script).__file__
    words = [file, *map(str, arguments)]
    code = f"""
import atexit, runpy, sys
sys.argv = {words!r}
sys.path.insert(0, {str(Path(file).parent)!r})
atexit.register(lambda: print(*(name for name, module in sys.modules.items() if module)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def killed(place: str, when: Callable[..., bool], script: str, *arguments: object) -> None:
    """Run a script in a process of its own that dies of `kill -9` as it begins a call of `place`.

    `place` is a function's full name, and of its calls it is the first whose arguments `when` says
    yes to. The process waits for no clock: however busy the machine is, it dies at that moment.
    """
    child = os.fork()
    if child == 0:
        try:
            settle_torch()
            with patch(place, _deadly(pkgutil.resolve_name(place), when)):
                ran = run(script, *arguments)
            os.write(2, f"exit {ran.code}\n{ran.err}".encode())  # it should not have come here
        finally:
            os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert end == -signal.SIGKILL, f"it never came to the call of {place}: exit {end}"


def _deadly(function: Callable[..., object], when: Callable[..., bool]) -> Callable[..., object]:
    def called(*arguments: object, **named: object) -> object:
        if when(*arguments, **named):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return called


def succeeds(script: str, *arguments: object, stdin: str = "") -> Ran:
    """`run` that must end well."""
    ran = run(script, *arguments, stdin=stdin)
    assert ran.code == 0, ran.err
    return ran


def refused(code: int, words: str, script: str, *arguments: object) -> list[str]:
    """`run` that must end with this exit code and a three-line error that says `words`."""
    ran = run(script, *arguments)
    assert ran.code == code, f"exit {ran.code}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.err
    starts = [line[:7] for line in ran.error]
    assert starts == ["error: ", "  why: ", "  do:  "], ran.err
    assert words in "\n".join(ran.error), ran.err
    assert "wrote" not in ran.out
    return ran.error


@contextmanager
def another_run_writing(final: Path) -> Iterator[None]:
    """Holds the lock of an output, as a run in another process would."""
    with only_writer(final, since="a while ago", command="another run"):
        yield


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` with its bytes; locks do not count, they stay between runs."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def leaves_nothing(folder: Path) -> bool:
    """Whether `folder` holds no file and no partial folder."""
    return not files_under(folder) and not list(folder.rglob("*.partial"))
