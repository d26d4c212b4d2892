"""A process of its own for llama.cpp: it may abort or hang, we may not.

`LlamaCpp` asks a model there, `LlamaServer` has it listen. Parent and child talk through a pipe:
the parent sends (verb, arguments), first of all what to load; the child answers in parts.
"""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Self

from slimtune.errors import InputError, ResourceError, SlimTuneError
from slimtune.inference.llama_library import library
from slimtune.models.gguf_header import require_gguf

_log = logging.getLogger(__name__)

_GOODBYE_SECONDS = 3.0
_KILLED = -9  # by the signal SIGKILL, a name that Windows does not have

Verb = Callable[..., Iterator[object]]


def default_threads() -> int:
    """Half the processors: llama.cpp's threads spin while they wait for each other.

    One busy neighbour on 2 cores cost two threads 99 % of their speed (1904 -> 3 tokens/s), one
    thread none.
    """
    return max(1, (os.cpu_count() or 1) // 2)


class LlamaChild:
    """A GGUF, with the GGUF of an adapter on it if one is given, in a process of its own.

    The process runs `serve` of `module`, which loads what `load` says; `loaded` is its word on
    that.

    Raises InputError for a file that is missing, no GGUF or damaged; ResourceError where xllamacpp
    is missing, memory does not suffice, or the child says nothing for `patience` seconds. Use it in
    a `with` block.
    """

    def __init__(
        self,
        module: str,
        gguf: Path | str,
        adapter: Path | None,
        load: tuple[object, ...],
        patience: float,
    ) -> None:
        self.gguf, self.patience = Path(gguf), patience
        require_gguf(self.gguf)
        if adapter is not None:
            require_gguf(adapter)
        library()  # a missing wheel is better told here than by a child
        # What the child says as it dies; open as long as the child lives.
        self._words = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        self._pipe, theirs = multiprocessing.Pipe()
        started = time.perf_counter()
        self._child = _start(module, theirs, self._words)
        theirs.close()
        try:
            self.loaded: Any = self._ask("load", self.gguf, adapter, *load)
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - started

    @property
    def process(self) -> int:
        """The id of the process that holds the model."""
        return self._child.pid

    def close(self) -> None:
        self._pipe.close()
        self._end()
        self._words.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, verb: str, *arguments: object) -> Any:
        (result,) = self._tell(verb, *arguments)
        return result

    def _tell(self, verb: str, *arguments: object) -> Iterator[Any]:
        try:
            self._pipe.send((verb, arguments))
        except ConnectionError as error:
            raise self._crashed() from error
        while (message := self._receive())[0] != "done":
            yield message[1]

    def _receive(self) -> tuple[str, Any]:
        try:
            if not self._pipe.poll(self.patience):
                raise self._silent()
            kind, content = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._crashed() from error
        if kind == "error":
            raise content
        return kind, content

    def _end(self) -> int:
        """The child's exit code; one that does not leave is ended by its own process id."""
        try:
            return self._child.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            _log.debug("llama.cpp did not end by itself, ending process %s", self._child.pid)
            self._child.kill()
            return self._child.wait()

    def _silent(self) -> ResourceError:
        self._child.kill()
        return ResourceError(
            f"{self.gguf}: llama.cpp gave no sign of life for {self.patience:.0f} s",
            "it hangs, or the machine is far too slow for this model",
            "try a smaller type such as Q4_K_M, fewer prompts, or a free machine",
        )

    def _crashed(self) -> SlimTuneError:
        code = self._end()
        if code == _KILLED:
            return ResourceError(
                f"{self.gguf}: llama.cpp was killed",
                "most often the system ends a process like this when memory runs out",
                "try a smaller type such as Q4_K_M, a shorter context, or fewer prompts at once",
            )
        self._words.seek(0)
        words = self._words.read().decode("utf-8", "replace").splitlines()
        return InputError(
            f"{self.gguf}: llama.cpp ended with exit code {code}",
            next((line for line in reversed(words) if line), "it stops so on contradictory files"),
            "convert the model again with convert_to_gguf.py",
        )


def _start(module: str, pipe: Connection, words: BinaryIO) -> subprocess.Popen:
    """A child with our import path and nothing else of ours: it must not import the main script."""
    start = f"from {module} import serve; serve({pipe.fileno()})"
    code = f"import sys; sys.path[:] = {sys.path!r}; {start}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=words,  # the parent's own is for results
        stderr=words,
        pass_fds=[pipe.fileno()],
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else an abort starts a debugger first
    )


def work(handle: int, load: Callable[..., tuple[object, Any]], verbs: Mapping[str, Verb]) -> None:
    """The child: loads the file it is told to, answers until the parent closes the pipe.

    `load` gives what the verbs are asked of, and its word to the parent. The child leaves by
    os._exit, because llama.cpp's threads can hang the interpreter's own exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe, code = Connection(handle), 1
    try:
        _, arguments = pipe.recv()
        engine, word = load(*arguments)
        _answer(pipe, iter([word]))
        while True:
            verb, arguments = pipe.recv()
            if verb != "cancel":
                _answer(pipe, verbs[verb](engine, *arguments))
    except SlimTuneError as error:
        pipe.send(("error", error))
    except (EOFError, ConnectionError):
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _answer(pipe: Connection, parts: Iterator[object]) -> None:
    try:
        for part in parts:
            pipe.send(("part", part))
            if pipe.poll():  # only "cancel", or the end of the parent, can come now
                pipe.recv()
                break
    except SlimTuneError as error:
        pipe.send(("error", error))
    else:
        pipe.send(("done", None))
