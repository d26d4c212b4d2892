"""JSON to a server that the user named or that we started, and JSON back: nowhere else.

No proxy of the environment is asked, and a redirect is not followed: what is asked are rows of the
user's data, and the address is the one that was given.
"""

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

_MOST = 64 * 2**20  # bytes of a reply; an answer of 100,000 tokens has one


class Unanswered(Exception):
    """A server gave no answer that can be used; the message says why."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: the reply itself, 3xx, becomes the error."""


_OPENER = build_opener(ProxyHandler({}), _NoRedirect)


def request_json(
    url: str, body: dict[str, Any] | None = None, *, key: str = "", patience: float = 300.0
) -> dict[str, Any]:
    """The object that a server replies to a POST of `body`, or to a GET without one.

    `key` is sent as a bearer token. Raises Unanswered where the server cannot be reached, is silent
    for `patience` seconds, refuses, redirects, or replies what is no JSON object.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with _OPENER.open(Request(url, data, headers), timeout=patience) as reply:
            content = reply.read(_MOST)
    except HTTPError as error:
        raise Unanswered(f"HTTP {error.code}: {_words(error)}") from error
    except TimeoutError as error:
        raise _late(patience) from error
    except (OSError, HTTPException) as error:
        if isinstance(error, URLError) and isinstance(error.reason, TimeoutError):
            raise _late(patience) from error
        raise Unanswered(f"{type(error).__name__}: {error}") from error
    return _object(content)


def _late(patience: float) -> Unanswered:
    return Unanswered(f"no word in {patience:g} s")


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise Unanswered(f"it replied {content[:80]!r}, which is no JSON") from error
    if not isinstance(found, dict):
        raise Unanswered(f"it replied {content[:80]!r}, which is no JSON object")
    if error := found.get("error"):
        raise Unanswered(_message(error))
    return found


def _words(error: HTTPError) -> str:
    """What a server says of its refusal: Ollama and llama-server send {"error": …}."""
    try:
        return _message(json.loads(error.read(_MOST))["error"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return str(error.reason)


def _message(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)
