"""Tests in any order and any number of processes: what goes first, and that none leaves a trace.

    bash test.sh                    a process a core, the files with the most work first
    SHUFFLE_SEED=1 bash test.sh     files, and the tests in each, in a random order

A test that changes the process for those after it fails itself, by `leaves_no_trace`.
"""

import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import psutil
import pytest

_SLOW, _OTHER = 10.0, 0.2  # seconds that a test marked slow takes, and one that is not
_MEMORY = 2_500_000_000  # bytes that a process holds at most, its children included
_MANY = 50  # modules that are worth another search of everything
_frozen = [0]  # how many modules there were, each time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first: one that came last would leave the other processes idle."""
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    seed = os.environ.get("SHUFFLE_SEED")
    if seed is None:
        files.sort(key=_seconds, reverse=True)
    else:
        chance = random.Random(seed)
        chance.shuffle(files)
        for tests in files:
            chance.shuffle(tests)
    items[:] = [test for tests in files for test in tests]


def pytest_collection_finish() -> None:
    _freeze_imports()


def pytest_runtest_logfinish() -> None:
    """What a test was the first to want: transformers imports most of itself only then."""
    if len(sys.modules) > _frozen[-1] + _MANY:
        _freeze_imports()


def _freeze_imports() -> None:
    """Takes what is imported by now out of the garbage collector, which would search it again and
    again: a third of a second each time with torch and transformers in memory, and each training
    collects three times.
    """
    gc.collect()
    gc.freeze()
    _frozen.append(len(sys.modules))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` means: one a core, and no more than there is memory for."""
    cores = len(psutil.Process().cpu_affinity() or ()) if psutil.LINUX else psutil.cpu_count()
    return max(1, min(cores, psutil.virtual_memory().available // _MEMORY))


def _seconds(tests: list[pytest.Item]) -> float:
    """What the tests of a file will take, by their marks."""
    slow = sum(1 for test in tests if test.get_closest_marker("slow"))
    return _SLOW * slow + _OTHER * (len(tests) - slow)


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Fails a test after which the process is not what it was before."""
    before = {name: look() for name, look in _LOOKS.items()}
    yield
    after = {name: look() for name, look in _LOOKS.items()}
    if not before["torch"]:  # the test imported it
        before["torch"] = after["torch"]
    changed = {name: (before[name], after[name]) for name in _LOOKS if after[name] != before[name]}
    assert not changed, f"the test left behind (before, after): {changed}"


@pytest.fixture
def signals_as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C and SIGTERM as a program in the foreground begins with them, however the tests were
    started: a shell starts its background jobs with Ctrl-C ignored, a service may do anything.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _environment() -> dict[str, str]:
    """But for what pytest says of each test, and torch where it is first imported."""
    told = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
    return {name: text for name, text in os.environ.items() if name not in told}


def _handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def _left_out() -> set[str]:
    """Packages that can no longer be imported: leave_out_unused is for the one run of a process."""
    # No pair is made of ten thousand modules, twice a test: that took 2 ms of each.
    if not [module for module in list(sys.modules.values()) if module is None]:
        return set()
    return {name for name, module in list(sys.modules.items()) if module is None}


def _log() -> tuple[int, list[logging.Handler]]:
    log = logging.getLogger("slimtune")
    return log.level, list(log.handlers)


def _torch() -> tuple[object, ...]:
    """Of new tensors the dtype, and how many threads compute; none where torch is still to come."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ()
    return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()


_LOOKS: dict[str, Callable[[], object]] = {
    "environment": _environment,
    "working directory": Path.cwd,
    "signal handlers": _handlers,
    "left out packages": _left_out,
    "torch": _torch,
    "log": _log,
}
