"""llama.cpp's own server in a child process: a GGUF as a person's client meets it.

    with LlamaServer(Path("model-Q4_K_M.gguf"), context=1024) as server:
        reply = server.chat([{"role": "user", "content": "Hello"}], Decoding(max_new_tokens=64))

It listens on 127.0.0.1, on a port that the system chooses, and answers who knows its key.
"""

import secrets
from pathlib import Path
from typing import Any

from slimtune.errors import ResourceError, SlimTuneError
from slimtune.inference.decoding import Decoding
from slimtune.inference.json_requests import Unanswered, request_json
from slimtune.inference.llama_child import LlamaChild, default_threads, work
from slimtune.inference.llama_context import LlamaContext
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import Reply, ServerClient
from slimtune.inference.server_replies import Messages

_NAME = "served"
_ERRORS = 1  # what llama.cpp writes to stderr: nothing but errors


class LlamaServer(LlamaChild):
    """A GGUF served by llama.cpp, one conversation of `context` tokens at a time.

    It is started as `llama-server -m GGUF` starts, so that sampling, chat template and end tokens
    are the file's own. `adapter` is put on it as by `--lora`, `chat_template` (jinja) takes the
    place of the file's as by `--chat-template-file`. `address` and `key` let other clients in.

    Raises what `LlamaChild` raises. Use it in a `with` block.
    """

    def __init__(
        self,
        gguf: Path | str,
        *,
        adapter: Path | None = None,
        chat_template: str | None = None,
        context: int = 2048,
        threads: int | None = None,
        patience: float = 600.0,
    ) -> None:
        self.key = secrets.token_hex(16)
        load = (self.key, chat_template or "", context, threads or default_threads())
        super().__init__(__name__, gguf, adapter, load, patience)
        self.address: str = self.loaded

    def chat(self, messages: Messages, decoding: Decoding) -> Reply:
        """Its answer to a conversation of which nothing of sampling is said: of `decoding` only the
        longest answer and, where it draws, the seed.
        """
        server = Server(f"{self.address}/v1", _NAME, key=self.key)
        with ServerClient(server, patience=self.patience, pauses=(), own_sampling=True) as client:
            try:
                return client.answer(messages, decoding)
            except SlimTuneError as error:
                raise self._failed(f"{error.what}: {error.why}") from error

    def sampling(self) -> dict[str, Any]:
        """How it samples for a client that says nothing of it, in the words of its /props."""
        try:
            props = request_json(f"{self.address}/props", key=self.key, patience=self.patience)
        except Unanswered as error:
            raise self._failed(str(error)) from error
        return props["default_generation_settings"]["params"]

    def _failed(self, why: str) -> SlimTuneError:
        """ResourceError where it gives no answer in time, what `_crashed` says if it died."""
        if self._child.poll() is not None:
            return self._crashed()
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
    parameters.n_parallel, parameters.n_ctx, parameters.model_alias = 1, context, {_NAME}
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    # The context is given, so nothing has to be fitted; one question at a time needs no store of
    # earlier ones (8 GB by default).
    parameters.fit_params, parameters.warmup, parameters.cache_ram_mib = False, False, 0
    # A prompt is computed whole: what one shares with the last must not decide its last digits.
    parameters.cache_prompt = False
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:
        # It says "check the input params", and its log is written by a thread that may come too
        # late; whoever loads the same without a server is told what is wrong.
        LlamaContext(gguf, context, 1, threads, adapter)
        raise
    return server, server.listening_address
