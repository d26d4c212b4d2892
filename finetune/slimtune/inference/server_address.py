"""Where a model is asked that a server runs: `http://HOST:PORT/v1#NAME`, or `ollama:NAME`.

The first is any server that speaks OpenAI's chat completions (llama-server, vLLM, LM Studio, Ollama
too), the second a running Ollama by its own API, at the address that OLLAMA_HOST names.
"""

import os
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import SplitResult, urlsplit

from slimtune.errors import ResourceError, SettingsError
from slimtune.models.ollama_store import PREFIX, is_ollama, ollama_address

API_KEY = "SLIMTUNE_API_KEY"


@dataclass(frozen=True)
class Server:
    """One model of one server: `base` is what the paths of its API come after.

    `model` is empty where an address names none: a server of one model needs no name. The key is
    the environment's; Ollama itself asks for none and gets none.
    """

    base: str
    model: str
    ollama: bool = False
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, reference: str) -> Self:
        """Raises SettingsError for what is no address, or holds a secret; ResourceError for a key
        in the environment that no request can carry."""
        if is_ollama(reference):
            return cls(ollama_address(), reference.removeprefix(PREFIX), ollama=True)
        parts = _parts(reference)
        base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        return cls(base, parts.fragment, key=_key())

    @property
    def reference(self) -> str:
        """What `of` reads."""
        return f"{PREFIX}{self.model}" if self.ollama else f"{self.base}#{self.model}"

    @property
    def label(self) -> str:
        """The name of its column: the model, without the folder that it may be named by, and the
        server that runs it."""
        place = "ollama" if self.ollama else urlsplit(self.base).netloc
        name = self.model.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
        return f"{name}@{place}"

    @property
    def shown(self) -> str:
        """How an error names it."""
        return f"{self.reference} ({self.base})" if self.ollama else self.reference.rstrip("#")

    def named(self, model: str) -> Self:
        """The same server with another of its models."""
        return replace(self, model=model)


def _parts(reference: str) -> SplitResult:
    shown = reference.rpartition("@")[2]  # what stands before it may be a secret
    try:
        parts = urlsplit(reference)
        host, _ = parts.hostname, parts.port
    except ValueError as error:  # half an IPv6 address, a port that is none
        raise _no_address(shown, str(error)) from None
    if "@" in parts.netloc or parts.query:
        wrong = f"it holds more than a place: a key belongs into the environment, as {API_KEY}"
        raise _no_address(f"{parts.scheme}://{host}{parts.path}", wrong)
    if not host or not reference.isprintable() or " " in reference:
        raise _no_address(shown, "it names no host, or holds a blank or an unprintable character")
    return parts


def _no_address(shown: str, why: str) -> SettingsError:
    return SettingsError(
        f"{shown}: no address of a server",
        why,
        "write it as --models http://127.0.0.1:8080/v1#NAME",
    )


def _key() -> str:
    """The environment's key, without blanks around it."""
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ResourceError(
            f"{API_KEY}: not a key that a request can carry",
            "it holds characters beyond ASCII, or an end of line",
            f"set it again: export {API_KEY}=...",
        )
    return key
