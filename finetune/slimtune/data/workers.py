"""One function over many items in several processes, the results in the order of the items."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil

from slimtune.errors import ResourceError
from slimtune.machine.process import ctrl_c_waits

_IN_FLIGHT = 3  # items a worker: one at work, one waiting, one on its way back
_PACE = 1.0  # seconds between two looks at whether the parent still lives

_state: Any = None  # of a worker: what `spread` was given for all items


def spread(
    work: Callable[[Any, Any], Any], items: Iterable[Any], state: Any, workers: int
) -> Iterator[Any]:
    """`work(item, state)` of each item; in this process if there is one worker only.

    At most a few items a worker are under way, so memory does not grow with their number.
    """
    if workers == 1:
        yield from (work(item, state) for item in items)
        return
    # fork hands the state on as it is; where there is none, it travels pickled.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, context, _begin, (state, os.getpid()))
    try:
        yield from _in_order(pool, work, items, workers)
    except BrokenProcessPool as error:
        raise ResourceError(
            "a worker process died",
            "the system ended it, most often for want of memory",
            "run again with --workers 1",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, work: Callable[[Any, Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    pending: deque = deque()
    for item in items:
        with ctrl_c_waits():  # the first calls start the processes
            pending.append(pool.submit(_work, work, item))
        if len(pending) >= _IN_FLIGHT * workers:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _begin(state: Any, parent: int) -> None:
    global _state
    _state = state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says it to the user, once
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that is killed cannot stop its workers: they look for themselves."""
    # Windows goes on naming a parent that is gone, elsewhere an heir takes its place.
    while os.getppid() == parent and psutil.pid_exists(parent):
        time.sleep(_PACE)
    os._exit(1)


def _work(work: Callable[[Any, Any], Any], item: Any) -> Any:
    return work(item, _state)
