"""Several processes that train together: when one has ended, another says so in our words.

The launcher ends the others at once (SIGTERM) and shows a traceback of its own. They cannot answer:
each waits in C for what the ended one was to send, and Python's signal handlers wait with it. What
Python does in C when a signal comes is to write its number to a file (signal.set_wakeup_fd), and a
thread reads that.
"""

import os
import signal
import socket
import sys
import threading
import time

import psutil

from slimtune.console import processes
from slimtune.errors import ExitCode, ResourceError

_RANK = "RANK"
_STAY = 5.0  # seconds in which the others, busy or not, see who is left; the launcher waits 30


def watch_ranks() -> None:
    """From now on the first process left on this machine tells if another has ended.

    Of one process alone, and of one that was told to ignore SIGTERM, nothing is changed.
    """
    if processes() == 1 or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    told, telling = socket.socketpair()
    telling.setblocking(False)
    listening = threading.Thread(target=_listen, args=(told, telling), daemon=True)
    listening.start()
    signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)

    def end(number: int, frame: object) -> None:
        listening.join()  # it has words, or none
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _listen(told: socket.socket, telling: socket.socket) -> None:
    """Until SIGTERM comes; `telling` is held open."""
    while signal.SIGTERM not in told.recv(64):
        continue
    here, gone = _here_and_gone()
    if not gone:
        return
    if os.environ[_RANK] == min(here, key=int):
        print(f"error: {_ended(gone)}", file=sys.stderr, flush=True)
    time.sleep(_STAY)
    os._exit(ExitCode.RESOURCES)


def _here_and_gone() -> tuple[set[str], set[str]]:
    """The ranks of this machine that still run, and those that do not."""
    first = int(os.environ[_RANK]) - int(os.environ["LOCAL_RANK"])
    ranks = {str(first + number) for number in range(int(os.environ["LOCAL_WORLD_SIZE"]))}
    here = {os.environ[_RANK]}
    for process in psutil.Process(os.getppid()).children():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                here.add(process.environ().get(_RANK, ""))
        except psutil.Error:  # it ends at this moment
            continue
    return here & ranks, ranks - here


def _ended(gone: set[str]) -> ResourceError:
    ranks = ", ".join(sorted(gone, key=int))
    return ResourceError(
        f"of {processes()} processes that train together rank {ranks} has ended",
        "if it said nothing above, the system has ended it, most often for want of memory",
        "mend that, and start the same command again with --resume: it goes on at the last "
        "checkpoint; what the launcher shows below says no more",
    )
