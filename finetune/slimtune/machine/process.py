"""What a process tells and changes of itself: peak of memory, malloc's threshold, its packages."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from slimtune.config import Config
from slimtune.machine.tricks import Nested, is_on

try:
    import resource
except ImportError:  # Windows
    resource = None

_STATUS, _CLEAR = "/proc/{}/status", "/proc/self/clear_refs"
_PSUTILS_PEAK = "peak_wset" if sys.platform == "win32" else "rss"
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_STREAMING, _USUAL = 1 << 20, 32 << 20  # bytes; 32 MB is what glibc's own rule grows to


def peak_memory(process: int | None = None) -> int:
    """Largest resident set so far, in bytes: of this process, or of another by its number.

    Linux says it of every process. Elsewhere a Unix says it of this one only, which then stands
    for the other too, and Windows says it through psutil.
    """
    status = Path(_STATUS.format(process or "self"))
    if status.is_file():
        # Not ru_maxrss: Linux counts in it the memory of the parent that a process was forked from.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    if resource:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return getattr(psutil.Process(process).memory_info(), _PSUTILS_PEAK)


def forget_peak() -> None:
    """Let `peak_memory` count from now on: the next stage of a long process begins. Linux only."""
    with suppress(OSError):
        Path(_CLEAR).write_text("5", encoding="ascii")


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """While it is open, Ctrl-C waits, and processes that are started here are born with it waiting:
    a terminal sends it to all of them, and in the middle of its imports one answers by a traceback.
    Windows cannot hold it back.
    """
    with _ctrl_c("SIG_BLOCK"):
        yield


@contextmanager
def ctrl_c_comes() -> Iterator[None]:
    """While it is open, Ctrl-C that `ctrl_c_waits` held back from this process is raised in it."""
    with _ctrl_c("SIG_UNBLOCK"):
        yield


@contextmanager
def _ctrl_c(how: str) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(getattr(signal, how), {signal.SIGINT})  # what waited is raised here
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """While it is open, glibc gives freed blocks over 1 MB back to the system at once.

    By itself it raises that limit to the largest block freed so far and keeps the pieces, which
    fragment while a model streams through memory: magnitude pruning of TinyLlama's shape, at 10 or
    22 layers, peaked at 441 to 686 MB that way, no two runs the same, and always at 411 MB with a
    fixed limit (benchmarks/low_memory.py). The price is fresh pages for every block: 20 CPU seconds
    for 10 layers in place of 12. Afterwards the limit is high: training reuses its blocks. Without
    glibc nothing is changed. Also a decorator; the trick's name is `malloc`.
    """
    if not is_on("malloc"):
        yield
        return
    with _blocks.opened():
        yield


def return_large_blocks() -> None:
    """From now on freed blocks over 1 MB go back at once, as those of lent weights must."""
    if is_on("malloc"):
        _blocks.open_for_good()


def return_free_blocks() -> None:
    """Give what is free in the heap back to the system, now.

    glibc keeps freed blocks between those in use: 670 MB after SmolLM2's training in bfloat16 had
    let go of its model, and the one that is loaded for the adapter's proof came on top of them.
    Each page is a fault once it is used again, 2 microseconds: once a batch that is 1 % of what a
    streamed model computes, of every block, as above, a fifth. Without glibc nothing is done. The
    trick's name is `malloc`.
    """
    if is_on("malloc"):
        _of_glibc("malloc_trim", 0)


@contextmanager
def _low_threshold() -> Iterator[None]:
    _set_threshold(_STREAMING)
    try:
        yield
    finally:
        _set_threshold(_USUAL)


_blocks = Nested(_low_threshold)


def _set_threshold(size: int) -> None:
    _of_glibc("mallopt", _M_MMAP_THRESHOLD, size)


def _of_glibc(function: str, *numbers: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library, without glibc's habit
        getattr(ctypes.CDLL("libc.so.6"), function)(*numbers)


def leave_out_unused(config: Config) -> None:
    """Keep out what peft and the Trainer import whenever it is installed, used or not.

    Together they are 126 MB of memory and 1.3 CPU seconds of a start
    (benchmarks/unused_packages.py). To be called before transformers and peft are first imported:
    an entry of None makes `import` and `find_spec` say that the package is not there, and nothing
    that asks later can have it. This is for the one run of a process that `config` describes. The
    trick's name is `unused_packages`.
    """
    if not is_on("unused_packages"):
        return
    for package in unused_packages(config):
        if package not in sys.modules:
            sys.modules[package] = None


def unused_packages(config: Config) -> set[str]:
    """Of datasets and bitsandbytes, what a run with these settings does without.

    datasets brings pyarrow and pandas, and no script trains on a `datasets.Dataset`; bitsandbytes
    is for weights in 4 or 8 bits and for 8-bit optimizers.
    """
    weights = {config.model.quantization, config.distillation.teacher_quantization}
    quantised = weights != {"none"} or config.training.optimizer_of_bitsandbytes
    return {"datasets"} if quantised else {"datasets", "bitsandbytes"}
