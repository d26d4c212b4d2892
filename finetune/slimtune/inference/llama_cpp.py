"""A GGUF file in llama.cpp, in a child process: llama.cpp may abort or hang, we may not.

    with LlamaCpp(Path("model-Q4_K_M.gguf"), context=1024, slots=8) as model:
        ids = model.tokenize("[INST] Hello [/INST]")
        answers = model.generate([ids], Decoding(max_new_tokens=64))

Nothing listens on a port: parent and child talk through a pipe.
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
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Self

from slimtune.console import InputError, ResourceError, SlimTuneError
from slimtune.inference.answers import Generation, Speed, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_context import LlamaContext, Prompt
from slimtune.inference.llama_library import library
from slimtune.inference.llama_vocabulary import LlamaVocabulary
from slimtune.models.gguf_header import require_gguf

_log = logging.getLogger(__name__)

_GOODBYE_SECONDS = 3.0


def default_threads() -> int:
    """Half the processors: llama.cpp's threads spin while they wait for each other.

    One busy neighbour on 2 cores cost two threads 99 % of their speed (1904 -> 3 tokens/s), one
    thread none.
    """
    return max(1, (os.cpu_count() or 1) // 2)


class LlamaCpp:
    """A GGUF ready to answer: `slots` prompts at once, `context` tokens each (0: the model's own).

    With no slots only its vocabulary is loaded: it tokenizes, and no more. `adapter` is the GGUF of
    a LoRA adapter, put on the model while it runs.

    Raises InputError for a file that is missing, no GGUF or damaged; ResourceError where xllamacpp
    is missing, memory does not suffice, or the child says nothing for `patience` seconds. Use it in
    a `with` block.
    """

    def __init__(
        self,
        gguf: Path | str,
        *,
        adapter: Path | None = None,
        context: int = 2048,
        slots: int = 1,
        threads: int | None = None,
        patience: float = 600.0,
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
        self._child = _start(theirs, self._words)
        theirs.close()
        try:
            load = (self.gguf, context, slots, threads or default_threads(), adapter)
            self.context: int = self._ask("load", *load)
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - started

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Ids as Ollama gets them: BOS first if the file says so, `</s>` in the text is EOS."""
        return self._ask("tokenize", text, add_special, parse_special)

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Generation]:
        """Answers to prompts given as ids, in the order of the prompts."""
        answers = dict(self.answers(prompts, decoding))
        return [answers[index] for index in range(len(prompts))]

    def answers(
        self, prompts: Sequence[Prompt], decoding: Decoding, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """The same as (prompt's index, answer), each as soon as it is finished.

        `rows` are their numbers among all, from which they draw; by default among these.
        """
        return self._tell("generate", prompts, decoding, rows or range(len(prompts)))

    def stream(self, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        """One answer's text as it grows; leaving the loop early ends the generation."""
        parts = self._tell("stream", prompt, decoding)
        try:
            yield from parts
        except GeneratorExit:
            self._pipe.send(("cancel", ()))
            while self._receive()[0] != "done":
                pass
            raise

    def losses(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> Iterator[tuple[int, TokenLosses]]:
        """(index, losses of the answer's tokens) of (prompt, answer) pairs.

        As many side by side as there are slots; one by one the last digits are others.
        """
        return self._tell("losses", pairs)

    def speed(self, prompt: Prompt, new_tokens: int = 64) -> Speed:
        """Tokens per second of one sequence: reading `prompt`, then writing `new_tokens`."""
        return self._ask("speed", prompt, new_tokens)

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
        if code == -signal.SIGKILL:
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


def _start(pipe: Connection, words: BinaryIO) -> subprocess.Popen:
    """A child with our import path and nothing else of ours: it must not import the main script."""
    start = f"from {__name__} import serve; serve({pipe.fileno()})"
    code = f"import sys; sys.path[:] = {sys.path!r}; {start}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stderr=words,
        pass_fds=[pipe.fileno()],
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else an abort starts a debugger first
    )


def serve(handle: int) -> None:
    """The child: loads the file it is told to, answers until the parent closes the pipe.

    It leaves by os._exit, because llama.cpp's threads can hang the interpreter's own exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe, code = Connection(handle), 1
    try:
        _, arguments = pipe.recv()
        engine = _load(*arguments)
        _answer(pipe, iter([engine.context]))
        while True:
            verb, arguments = pipe.recv()
            if verb != "cancel":
                _answer(pipe, _VERBS[verb](engine, *arguments))
    except SlimTuneError as error:
        pipe.send(("error", error))
    except (EOFError, ConnectionError):
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _load(
    gguf: Path, context: int, slots: int, threads: int, adapter: Path | None
) -> LlamaVocabulary:
    if not slots:
        return LlamaVocabulary(gguf)
    return LlamaContext(gguf, context, slots, threads, adapter)


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


def _once(method: Callable[..., object]) -> Callable[..., Iterator[object]]:
    def call(engine: LlamaContext, *arguments: object) -> Iterator[object]:
        yield method(engine, *arguments)

    return call


_VERBS: dict[str, Callable[..., Iterator[object]]] = {
    "tokenize": _once(LlamaContext.tokenize),
    "speed": _once(LlamaContext.speed),
    "generate": LlamaContext.generate,
    "losses": LlamaContext.losses,
    "stream": LlamaContext.stream,
}
