"""llama.cpp's own server in a child process: a GGUF as a person's client meets it.

    with LlamaServer(Path("model-Q4_K_M.gguf"), context=1024) as server:
        answer = server.chat([{"role": "user", "content": "Hello"}])

It listens on 127.0.0.1, on a port that the system chooses, and answers who knows its key.
"""

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtune.console import ResourceError
from slimtune.inference.json_requests import Unanswered, request_json
from slimtune.inference.llama_child import LlamaChild, default_threads, work
from slimtune.prompts import ChatMessage

_ERRORS = 1  # what llama.cpp writes to stderr: nothing but errors
_STAMP = re.compile(r"^[\d.]+ E +")


@dataclass(frozen=True)
class ServedAnswer:
    """What a server said without blanks around it, and how many tokens it made of the prompt.

    None where it does not say.
    """

    text: str
    prompt_tokens: int | None


class LlamaServer(LlamaChild):
    """A GGUF served by llama.cpp, one conversation of `context` tokens at a time.

    It is started as `llama-server -m GGUF` starts, so that sampling, chat template and end tokens
    are the file's own; an answer has at most `max_new_tokens` (-1: what the context holds), so that
    requests need not say it. `adapter` is put on it as by `--lora`, `chat_template` (jinja) takes
    the place of the file's as by `--chat-template-file`.

    Raises what `LlamaChild` raises. Use it in a `with` block.
    """

    def __init__(
        self,
        gguf: Path | str,
        *,
        adapter: Path | None = None,
        chat_template: str | None = None,
        context: int = 2048,
        max_new_tokens: int = -1,
        threads: int | None = None,
        patience: float = 600.0,
    ) -> None:
        self.key = secrets.token_hex(16)
        load = (self.key, chat_template or "", context, max_new_tokens)
        super().__init__(__name__, gguf, adapter, (*load, threads or default_threads()), patience)
        self.address: str = self.loaded

    def chat(self, messages: Sequence[ChatMessage], seed: int | None = None) -> ServedAnswer:
        """The answer to a conversation, of which nothing but the messages is sent, and `seed`."""
        body = {"messages": list(messages)} | ({} if seed is None else {"seed": seed})
        found = self.request("/v1/chat/completions", body)
        try:
            text = found["choices"][0]["message"]["content"]
            return ServedAnswer(text.strip(), found["usage"]["prompt_tokens"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._failed(f"it replied {str(found)[:80]!r}") from error

    def sampling(self) -> dict[str, Any]:
        """How it samples for a client that says nothing of it, in the words of its /props."""
        return self.request("/props")["default_generation_settings"]["params"]

    def request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Its reply; ResourceError where there is none in time, what `_crashed` says if it died."""
        try:
            return request_json(self.address + path, body, key=self.key, patience=self.patience)
        except Unanswered as error:
            if self._child.poll() is not None:
                raise self._crashed() from error
            raise self._failed(str(error)) from error

    def _reason(self, words: list[str]) -> str:
        """The first error: those after it tell where it led to."""
        return _STAMP.sub("", words[0])

    def _failed(self, why: str) -> ResourceError:
        return ResourceError(
            f"{self.gguf}: llama.cpp's server gave no answer",
            why,
            "try a smaller type such as Q4_K_M, or a free machine; --verify quick asks llama.cpp "
            "without its server",
        )


def serve(handle: int) -> None:
    """The child's part, see `llama_child.work`."""
    work(handle, _load, {})


def _load(
    gguf: Path,
    adapter: Path | None,
    key: str,
    chat_template: str,
    context: int,
    max_new_tokens: int,
    threads: int,
) -> tuple[object, str]:
    """The server, which listens as soon as it is made, and its address."""
    import xllamacpp  # 100 MB of code, which the parent does without

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    if adapter is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    parameters.chat_template = chat_template
    parameters.use_jinja = True
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.api_keys = [key]
    parameters.ui, parameters.offline, parameters.verbosity = False, True, _ERRORS
    parameters.n_parallel, parameters.n_ctx, parameters.n_predict = 1, context, max_new_tokens
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    # The context is given, so nothing has to be fitted; one question at a time needs no store of
    # earlier ones (8 GB by default).
    parameters.fit_params, parameters.warmup, parameters.cache_ram_mib = False, False, 0
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:
        # It says "check the input params"; llama.cpp's own words say more, and the parent has them.
        os._exit(1)
    return server, server.listening_address
