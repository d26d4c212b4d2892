"""Ollama's local store: which file of it holds the weights of a model that is known by a name.

A manifest (`manifests/HOST/NAMESPACE/MODEL/TAG`, JSON) lists the layers of a model; the weights are
the layer of the type below, a GGUF file under `blobs/sha256-…`. Where Ollama itself listens is told
here too; nothing asks it.
Layout: https://github.com/ollama/ollama/blob/main/server/modelpath.go
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slimtune.artifacts.files import read_json
from slimtune.console import near
from slimtune.errors import InputError, SettingsError

PREFIX = "ollama:"
_PORTS = {"": 11434, "http": 80, "https": 443}
_WEIGHTS = "application/vnd.ollama.image.model"
_ADAPTER = "application/vnd.ollama.image.adapter"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
# As Ollama itself reads a name: ASCII alone, nothing odd in front, 80 characters a part.
# https://github.com/ollama/ollama/blob/main/types/model/name.go
_NAME = re.compile(
    r"(?:(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349})/)?"
    r"(?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{0,79})/)?"
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?"
)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PULL_AGAIN = "pull it again with `ollama pull`, or give the .gguf file itself"


def is_ollama(reference: str) -> bool:
    return reference.startswith(PREFIX)


def plain_name(reference: str) -> str:
    """A name for folders and labels: `ollama:qwen3:0.6b` is qwen3-0.6b."""
    return re.sub(r"[:/]", "-", reference.removeprefix(PREFIX))


def file_name(model_name: str) -> str:
    """What files of ours are called after: the last part, `me/tiny:v1` is tiny-v1."""
    return plain_name(model_name.rpartition("/")[2])


def blob_of(reference: str) -> Path:
    """The GGUF file of `ollama:[HOST/][NAMESPACE/]MODEL[:TAG]`.

    Raises SettingsError for what is no name of Ollama's, InputError where no store has the model,
    its manifest is damaged, or it is a base with an adapter on top.
    """
    parts = full_name(reference)
    for store in stores():
        manifest = store.joinpath("manifests", *parts)
        if manifest.is_file():
            return _weights(store, manifest, reference)
    places = ", ".join(str(store) for store in stores())
    there = sorted(set(_models()))
    shown = f"there are {', '.join(there[:8])}" if there else "it has no models"
    raise InputError(
        f"{reference}: not in Ollama's store",
        f"looked in {places}; {shown}",
        f"`ollama pull {reference.removeprefix(PREFIX)}`, or set OLLAMA_MODELS to the store",
    )


def stores() -> list[Path]:
    """OLLAMA_MODELS where it is set; else the user's store, then the one of the Linux service."""
    if own := os.environ.get("OLLAMA_MODELS"):
        return [Path(own).expanduser()]
    return [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def ollama_address() -> str:
    """Where Ollama listens: OLLAMA_HOST, read as ollama itself reads it, else this machine.

    Its port without a scheme is Ollama's own, with one that scheme's; one that is none counts as
    none. https://github.com/ollama/ollama/blob/main/envconfig/config.go
    """
    host = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, _, place = host.rpartition("://")
    usual = _PORTS[scheme if scheme in _PORTS else ""]
    name, port = None, None
    with suppress(ValueError):  # half an IPv6 address, or a port that is none
        name = urlsplit(f"//{place}").hostname
        port = urlsplit(f"//{place}").port
    name = name or "127.0.0.1"
    if name in ("0.0.0.0", "::"):  # where it listens, not where it can be reached
        name = "127.0.0.1"
    return f"{scheme or 'http'}://{f'[{name}]' if ':' in name else name}:{port or usual}"


def full_name(reference: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag of a reference, with Ollama's own defaults.

    Raises SettingsError for what is no name of Ollama's.
    """
    found = _NAME.fullmatch(reference.removeprefix(PREFIX))
    if found is None:
        raise SettingsError(
            f"{reference}: no name of a model in Ollama",
            "a name is MODEL, MODEL:TAG or USER/MODEL:TAG",
            f"`ollama list` shows the names; write for example {PREFIX}llama3.2:1b",
        )
    given = found.groupdict()
    host, namespace = given["host"] or _HOST, given["namespace"] or _NAMESPACE
    return host, namespace, given["model"], given["tag"] or _TAG


def require_name(name: str) -> None:
    """SettingsError for a `gguf.model_name` that `ollama create` would refuse, after all the work.

    The cure is the name with what is not allowed left out.
    """
    if _NAME.fullmatch(name):
        return
    ascii_only = re.sub(r"[^A-Za-z0-9_.:/-]+", "-", name)
    parts = [part.strip("-.")[:80] for part in re.split(r"([/:])", ascii_only)]
    near_enough = "".join(parts)
    usable = near_enough if _NAME.fullmatch(near_enough) else "my-model"
    raise SettingsError(
        f"gguf.model_name: {name} is no name that Ollama takes",
        "it is MODEL, MODEL:TAG or USER/MODEL:TAG of ASCII letters, digits, _, - and (not in USER)"
        " dots; each begins with a letter, a digit or _ and has at most 80 characters",
        f"--model-name {usable}",
    )


def _weights(store: Path, manifest: Path, reference: str) -> Path:
    layers = read_json(manifest, _PULL_AGAIN).get("layers")
    layers = [one for one in layers if isinstance(one, dict)] if isinstance(layers, list) else []
    if any(one.get("mediaType") == _ADAPTER for one in layers):
        raise InputError(
            f"{reference}: a base with an adapter on top",
            "Ollama joins the two when it loads them; the file of weights alone is another model",
            "merge them with the tools that made the adapter, and give the merged model",
        )
    weights = [_digest(one) for one in layers if one.get("mediaType") == _WEIGHTS]
    if len(weights) != 1 or weights[0] is None:
        found = f"it names {len(weights)} files of weights" if weights else "it names no weights"
        raise InputError(f"{near(manifest)}: no manifest that can be used", found, _PULL_AGAIN)
    blob = store / "blobs" / f"sha256-{weights[0]}"
    if not blob.is_file():
        raise InputError(f"{reference}: its weights are missing", f"looked for {blob}", _PULL_AGAIN)
    return blob


def _digest(layer: dict[str, Any]) -> str | None:
    found = _DIGEST.fullmatch(str(layer.get("digest")))
    return found[1] if found else None


def _models() -> Iterator[str]:
    """The names in the stores, as `ollama list` says them."""
    for store in stores():
        for manifest in (store / "manifests").glob("*/*/*/*"):
            host, namespace, model, tag = manifest.parts[-4:]
            shown = "/".join(
                part for part, usual in ((host, _HOST), (namespace, _NAMESPACE)) if part != usual
            )
            yield f"{shown}/{model}:{tag}" if shown else f"{model}:{tag}"
