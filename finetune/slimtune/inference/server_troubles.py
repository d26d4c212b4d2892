"""What can go wrong with a server, each in one sentence: whose fault, why, and what helps.

What a server says of itself is shown in one line, without what a terminal would obey and without
the key, which a careless server repeats in its errors.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from slimtune.errors import InputError, ResourceError, SlimTuneError
from slimtune.inference.json_requests import error_in
from slimtune.inference.server_address import API_KEY, Server

Trouble = TypeVar("Trouble", bound=SlimTuneError)

# All but tab and line ends: a terminal would obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PAGE = ("<!doctype", "<html", "<?xml", "<head", "<body")
_LONGEST_PAUSE = 60.0
_GO_ON = "then run the same command: the answers so far are kept"


class Passing(ResourceError):
    """What may be over in a moment: no connection, 429, 5xx. `pause` is how long the server asks
    to be left alone, in seconds."""

    pause = 0.0


class Refused(InputError):
    """A request that the server did not take: 400 or 422."""


class NotThere(InputError):
    """A place or a model that the server does not have: 404 or 405."""


@dataclass(frozen=True)
class Troubles:
    """The errors of one server."""

    server: Server

    def no_connection(self, error: Exception) -> Passing:
        why = f"{type(error).__name__}: {error}"
        return self._of(
            Passing, "no connection", why, f"start the server, or correct the address; {_GO_ON}"
        )

    def broken_off(self) -> Passing:
        why = "the connection or the server ended before the answer did"
        return self._of(Passing, "its answer broke off", why, f"look at its log, {_GO_ON}")

    def silent(self, seconds: float) -> ResourceError:
        why = "it hangs, or is far too slow for this model"
        return self._of(
            ResourceError, f"silent for {seconds:.0f} s", why, f"look at its log, {_GO_ON}"
        )

    def no_way(self, error: Exception) -> ResourceError:
        return self._of(
            ResourceError,
            "the proxy or the certificates that the environment names cannot be used",
            str(error),
            "look at HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE",
        )

    def nonsense(self, what: str) -> InputError:
        return self._of(
            InputError,
            "what it answers is no answer",
            what,
            "look at the address: it must lead to an API like OpenAI's, and most end in /v1",
        )

    def error_for_answer(self, said: str, status: int) -> InputError:
        what = f"an error in place of an answer (status {status})"
        return self._of(InputError, what, said, f"look at its log, {_GO_ON}")

    def other_model(self, answered: str) -> InputError:
        return self._of(
            InputError,
            f"another model answered: {answered}",
            f"{self.server.model} was asked: the server has no such model, or loaded another since",
            "load that model in the server, or name the one that it has",
        )

    def status(self, status: int, headers: Mapping[str, str], body: str) -> SlimTuneError:
        """What a status other than 200 means."""
        if 300 <= status < 400:
            place = headers.get("location", "nowhere")
            return self._of(
                ResourceError,
                f"it sends us elsewhere (status {status})",
                f"to {place}: requests go to the address that you named and nowhere else",
                "name that address if you trust it",
            )
        if status == 429 or status >= 500:
            busy = self._of(Passing, f"status {status}", body, f"wait until it is ready, {_GO_ON}")
            busy.pause = _pause_of(headers.get("retry-after", ""))
            return busy
        if status in (401, 403):
            cure = f"export {API_KEY}=... with the server's key; it is recorded nowhere"
            return self._of(ResourceError, f"it wants a key (status {status})", body, cure)
        if status in (404, 405):
            cure = "look at the address: most end in /v1, with the model's name after #"
            if self.server.ollama:
                cure = f"`ollama pull {self.server.model}`"
            return self._of(NotThere, f"not there (status {status})", body, cure)
        return self._of(
            Refused if status in (400, 422) else InputError,
            f"it does not take the request (status {status})",
            body,
            "if it says so, shorten the rows or give the server a longer context",
        )

    def _of(self, kind: type[Trouble], what: str, why: str, cure: str) -> Trouble:
        return kind(f"{self.server.shown}: {self._line(what)}", self._line(why), cure)

    def _line(self, said: str) -> str:
        """What somebody said, or the JSON in which a server said it, in one short line."""
        try:
            found = json.loads(said)
            said = str(error_in(found) or found.get("message") or found.get("detail") or said)
        except (ValueError, AttributeError, RecursionError):
            said = "a web page" if is_page(said) else said
        line = " ".join(CONTROL.sub("", without_key(said, self.server)).split())
        return (f"{line[:300]}…" if len(line) > 300 else line) or "it gives no reason"


def without_key(text: str, server: Server) -> str:
    """What a server said, without the key that it was told."""
    return text.replace(server.key, "***") if server.key else text


def hiding_key(pieces: Iterable[str], server: Server) -> Iterator[str]:
    """The same for a text that comes in pieces: what may begin the key waits for the next one."""
    held = ""
    for piece in pieces:
        text = without_key(held + piece, server)
        most = min(len(server.key), len(text))
        held = next((text[-n:] for n in range(most, 0, -1) if server.key.startswith(text[-n:])), "")
        yield text[: len(text) - len(held)]
    yield held


def is_page(text: str) -> bool:
    """Whether it is HTML: the address leads to a web site, or a proxy answers in its place."""
    return text.lstrip()[:200].lower().startswith(_PAGE)


def _pause_of(header: str) -> float:
    """Seconds of a Retry-After; a date there, or nonsense, counts as none."""
    return min(float(header), _LONGEST_PAUSE) if header.strip().isdecimal() else 0.0
