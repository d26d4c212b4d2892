"""What a command costs: CPU seconds, wall seconds and peak memory of it and all its children.

Every benchmark runs each side as a process of its own through `measure`, so that neither side's
imports, caches or leftovers count for the other, and prints one `table`.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "finetune"))

from slimtune.machine.process import peak_memory

ROOT = Path(__file__).resolve().parents[1]
FINETUNE = ROOT / "finetune"
SHARED_DATA = ROOT.parent / "shared" / "data"

_PACE = 0.02  # seconds between two looks at the memory
_LOOKS = 10  # at the memory for each at who is there
_RESULT = "RESULT "


@dataclass(frozen=True)
class Cost:
    """One finished process: `cpu` is user + system seconds, `peak` bytes resident at once."""

    wall: float
    cpu: float
    peak: int
    returncode: int
    output: str
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        return self.peak / 1e6


def measure(
    command: Sequence[str | Path],
    *,
    threads: int = 1,
    environment: dict[str, str] | None = None,
    check: bool = True,
) -> Cost:
    """Run `command` with `threads` threads for every library and measure it with its children.

    Peak memory is the largest sum over the process tree, polled every 20 ms (processes that are new
    every 200), pages that several processes share counted once, and never less than the kernel's
    own high-water mark of a process, where that is not this one's.
    Raises RuntimeError with the output's end when `check` is set and the command failed.
    """
    variables = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(FINETUNE),
    }
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables | (environment or {}),
    )
    polled = _Peak(process.pid)
    lines = list(process.stdout)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    scale = 1 if sys.platform == "darwin" else 1024
    # A child starts with its parent's mark: 361 MB of a benchmark that had loaded torch were said
    # of a conversion that took 140.
    high, own = usage.ru_maxrss * scale, peak_memory()
    cost = Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=max(polled.stop(), high if high > own else 0),
        returncode=process.returncode,
        output="".join(lines),
        results=_results(lines),
    )
    if check and cost.returncode:
        raise RuntimeError(f"{command} exited with {cost.returncode}:\n{cost.output[-3000:]}")
    return cost


def report(**results: Any) -> None:
    """Said by a measured process: figures that `measure` hands on in `Cost.results`."""
    print(_RESULT + json.dumps(results), flush=True)


def _results(lines: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in lines:
        if line.startswith(_RESULT):
            found |= json.loads(line[len(_RESULT) :])
    return found


class _Peak:
    """Watches a process tree from a thread."""

    def __init__(self, pid: int) -> None:
        self._tree, self._peak, self._over = _Tree(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_PACE):
            self._peak = max(self._peak, self._tree.resident())

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak


class _Tree:
    """A process and its children. Who they are is asked of every process of the machine, which
    takes 2.5 ms of 128: so every tenth look, and the memory of those that are known each time.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._known, self._looks = pid, [], 0

    def resident(self) -> int:
        """Bytes of all of them; pages that several share count once."""
        if self._looks % _LOOKS == 0:
            self._known = _with_children(self._pid)
        self._looks += 1
        # A child that was just forked has every page of its parent: resident sets would count twice
        kind = "pss" if len(self._known) > 1 and sys.platform == "linux" else "rss"
        return sum(_pages(one, kind) for one in self._known)


def _with_children(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _pages(process: psutil.Process, kind: str) -> int:
    try:
        return getattr(process.memory_info() if kind == "rss" else process.memory_full_info(), kind)
    except psutil.Error:
        return 0


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in aligned columns: text to the left, numbers to the right."""
    cells = [list(headers), *[[_written(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        first, *rest = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine(names: Sequence[str] = ("torch", "transformers", "peft", "gguf")) -> str:
    """The machine and the versions of packages in one line, for the head of a table."""
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{_processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
