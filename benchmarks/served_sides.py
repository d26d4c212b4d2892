"""Whom benchmarks/served.py asks beside our own engines: llama.cpp's server, and Ollama.

Both get the messages and the most tokens of an answer, and nothing of sampling.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import FINETUNE

sys.path.insert(0, str(FINETUNE))
_CONTEXT = 2048
_NAME = "slimtune-benchmark-served"  # created in Ollama, asked, and removed again


def ask_llama_server(
    gguf: Path, adapter: Path | None, rows: Sequence[dict[str, Any]], most_tokens: int
) -> list[str]:
    """llama.cpp's server in a child process, started with files and lengths alone."""
    from slimtune.inference.decoding import Decoding
    from slimtune.inference.llama_server import LlamaServer

    with LlamaServer(gguf, adapter=adapter, context=_CONTEXT) as server:
        return [server.chat(_asked(row), Decoding(most_tokens)).text for row in rows]


def ollama_version() -> str | None:
    """The version of the server that listens; None where none does."""
    from slimtune.inference.json_requests import Unanswered, request_json
    from slimtune.models.ollama_store import ollama_address

    try:
        return str(request_json(f"{ollama_address()}/api/version", patience=10)["version"])
    except (Unanswered, KeyError):
        return None


def ask_ollama(
    modelfile: Path, rows: Sequence[dict[str, Any]], most_tokens: int
) -> list[str] | str:
    """Its answers as of `ollama run`; its own words where it refuses the Modelfile."""
    from slimtune.inference.json_requests import request_json
    from slimtune.models.ollama_store import ollama_address

    made = subprocess.run(
        ["ollama", "create", _NAME, "-f", str(modelfile)], capture_output=True, text=True
    )
    if made.returncode:
        words = (made.stderr + made.stdout).strip().splitlines()
        return f"`ollama create` refuses it: {words[-1] if words else 'no reason given'}"
    url = f"{ollama_address()}/api/chat"
    body = {"model": _NAME, "stream": False, "options": {"num_predict": most_tokens}}
    with _removed():
        replies = (request_json(url, body | {"messages": _asked(row)}) for row in rows)
        return [reply["message"]["content"].strip() for reply in replies]


@contextmanager
def _removed() -> Iterator[None]:
    try:
        yield
    finally:
        subprocess.run(["ollama", "rm", _NAME], capture_output=True)


def _asked(row: dict[str, Any]) -> list[dict[str, str]]:
    return row["messages"][:-1]
