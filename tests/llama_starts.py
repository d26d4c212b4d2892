"""llama.cpp's child processes as forks of one that has imported what they need: 0.02 s, not 0.35.

Several hundred tests ask llama.cpp something, and Python, numpy, pydantic and the wheel are read
again for each. Tests of the processes themselves start them as users do, by the fixture
`llama_cpp_as_users_start_it`.

    test process --socket--> server --fork--> keeper --fork--> child: `serve` of its module

The server has one thread and little memory, so its forks are safe and their peaks are their own.
The keeper waits for the child and hands its end on, which only a parent is told.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import BinaryIO

from slimtune.inference import llama_cpp  # noqa: F401  what most children want
from slimtune.inference.llama_library import library

_LARGEST = 1 << 20  # bytes of a request: folder and environment
_STATUS = 4  # bytes of a number that the keeper sends


class Child:
    """A child as `subprocess.Popen` shows it, as far as LlamaCpp looks."""

    def __init__(self, status: int) -> None:
        self._status, self.returncode = status, None
        self.pid = self._number()

    def poll(self) -> int | None:
        ended = self.returncode is not None or select.select([self._status], [], [], 0)[0]
        return self.wait() if ended else None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("llama.cpp", timeout)
            self.returncode = os.waitstatus_to_exitcode(self._number())
            os.close(self._status)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _number(self) -> int:
        found = os.read(self._status, _STATUS)
        assert len(found) == _STATUS, "the process that forks has ended"
        return int.from_bytes(found, "little")


class Server:
    """The process that forks; started by the first `start`, it ends with this one or `close`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, module: str, pipe: Connection, words: BinaryIO) -> Child:
        """What `llama_child._start` is, for the folder and the environment of this moment."""
        if self._socket is None:
            self._socket, self._process = _server()
        ours, theirs = os.pipe()
        request = json.dumps([module, os.getcwd(), dict(os.environ)]).encode()
        handles = [pipe.fileno(), words.fileno(), theirs]
        socket.send_fds(self._socket, [request], handles)
        os.close(theirs)
        return Child(ours)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._process.wait()


def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        ours.setsockopt(socket.SOL_SOCKET, size, _LARGEST)
    start = f"from {__name__} import serve_forks; serve_forks({theirs.fileno()})"
    code = f"import sys; sys.path[:] = {sys.path!r}; {start}"
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()])
    theirs.close()
    return ours, process


def serve_forks(handle: int) -> None:
    """The server: a fork for each request, until the test process closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    library()
    requests = socket.socket(fileno=handle)
    while True:
        request, handles, _, _ = socket.recv_fds(requests, _LARGEST, 3)
        with suppress(ChildProcessError):  # there is none
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not request:
            return
        if not os.fork():
            requests.close()
            _keep(*handles, *json.loads(request))
        for one in handles:
            os.close(one)


def _keep(
    pipe: int, words: int, status: int, module: str, folder: str, environment: dict[str, str]
) -> None:
    child = os.fork()
    if not child:
        os.close(status)
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment, GGML_NO_BACKTRACE="1")
        importlib.import_module(module).serve(pipe)
    os.close(pipe)
    os.close(words)
    with suppress(BrokenPipeError):  # whoever asked was killed
        os.write(status, child.to_bytes(_STATUS, "little"))
        os.write(status, os.waitpid(child, 0)[1].to_bytes(_STATUS, "little"))
    os._exit(0)
