"""JSON to a server that the user named or that we started, and JSON back: nowhere else.

A redirect is not followed, and no proxy of the environment leads to a server of this machine: what
is asked are rows of the user's data, and the address is the one that was given.
"""

import ipaddress
import json
import ssl
from typing import Any

import httpx2

_CONNECT = 10.0  # seconds
MOST = 16 << 20  # bytes of a reply; an answer of 10,000 tokens has two of them, streamed


class Unanswered(Exception):
    """A server gave no answer that can be used; the message says why."""


def http_client(url: str, *, key: str = "", patience: float = 300.0) -> httpx2.Client:
    """What asks the server of an address; `key` is sent as a bearer token.

    Raises ImportError, OSError or ValueError where the environment names proxies or certificates
    that cannot be used.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = httpx2.URL(url)
    ours = is_loopback(address.host)
    # To read the system's certificates takes 19 ms, and nothing here is asked by https then.
    none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx2.Client(
        # Nothing compressed: a few bytes of that could be all of memory.
        headers={"Accept-Encoding": "identity", **headers},
        timeout=httpx2.Timeout(patience, connect=min(_CONNECT, patience)),
        verify=none if ours and address.scheme == "http" else True,
        trust_env=not ours,
        follow_redirects=False,
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by name or number."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def body_of(response: httpx2.Response) -> str:
    """The text of a reply; ValueError for one that does not end in time."""
    found = bytearray()
    for chunk in response.iter_bytes():
        found += chunk
        if len(found) > MOST:
            raise ValueError(f"more than {MOST >> 20} MB")
    return found.decode("utf-8", "replace")


def request_json(
    url: str, body: dict[str, Any] | None = None, *, key: str = "", patience: float = 300.0
) -> dict[str, Any]:
    """The object that a server replies to a POST of `body`, or to a GET without one.

    Raises Unanswered where the server cannot be reached, is silent for `patience` seconds, refuses,
    redirects, or replies what is no JSON object.
    """
    method = "GET" if body is None else "POST"
    try:
        with (
            http_client(url, key=key, patience=patience) as client,
            client.stream(method, url, json=body) as reply,
        ):
            status, content = reply.status_code, body_of(reply)
    except httpx2.TimeoutException as error:
        raise Unanswered(f"no word in {patience:g} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, ValueError) as error:
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    if status != 200:
        raise Unanswered(f"HTTP {status}: {_words(content)}")
    return _object(content)


def _object(content: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unanswered(f"it replied {content[:80]!r}, which is no JSON") from error
    if not isinstance(found, dict):
        raise Unanswered(f"it replied {content[:80]!r}, which is no JSON object")
    if error := error_in(found):
        raise Unanswered(error)
    return found


def error_in(found: dict[str, Any]) -> str | None:
    """What a reply says went wrong, whatever its status was; None for an answer.

    Ollama sends {"error": "…"}, all others {"error": {"message": "…"}}.
    """
    error = found.get("error")
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return None if error is None else str(error)


def _words(content: str) -> str:
    """What a server says of its refusal."""
    try:
        return error_in(json.loads(content)) or content[:80]
    except (ValueError, AttributeError, RecursionError):
        return content[:80]
