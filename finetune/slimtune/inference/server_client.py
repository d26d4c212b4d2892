"""A server's answers over HTTP: asked again where waiting helps, and named where it says nonsense.

    with ServerClient(Server.of("http://127.0.0.1:8080/v1#tiny")) as client:
        reply = client.answer(messages, decoding)

Requests go to the address that the user named and nowhere else: redirects are refused, and no proxy
of the environment leads to this machine's own servers.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self, TypeVar

import httpx2

from slimtune.errors import SlimTuneError
from slimtune.inference import server_replies as replies
from slimtune.inference.decoding import Decoding
from slimtune.inference.json_requests import MOST, body_of, error_in, http_client
from slimtune.inference.server_address import Server
from slimtune.inference.server_replies import Listed, Messages, Piece
from slimtune.inference.server_troubles import (
    CONTROL,
    NotThere,
    Passing,
    Refused,
    Troubles,
    hiding_key,
    is_page,
    without_key,
)

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds: llama-server says 503 while it loads a model
AT_ONCE = (1.0, 2.0)  # where a person waits
PATIENCE = 600.0  # seconds of silence: Ollama loads a model before its first word


@dataclass(frozen=True)
class Reply:
    """A whole answer; `tokens` and `prompt_tokens` are None where the server does not count.

    `writing` is what came after the first piece: (tokens, seconds).
    """

    text: str
    tokens: int | None
    stopped: bool
    writing: tuple[int, float]
    prompt_tokens: int | None = None


class ServerClient:
    """One server. `patience` is how long it may be silent, `pauses` lie between tries, in seconds.
    With `own_sampling` requests say nothing of it: the server decides, as for a client that does
    not care.

    Raises ResourceError where it is not there, busy for too long, silent, or wants another key;
    InputError where it has no such model, takes no such request, or answers what is no answer.
    Use it in a `with` block.
    """

    def __init__(
        self,
        server: Server,
        *,
        patience: float | None = None,
        pauses: Sequence[float] | None = None,
        own_sampling: bool = False,
    ) -> None:
        self.server, self.troubles = server, Troubles(server)
        self.patience = PATIENCE if patience is None else patience
        self.pauses = PAUSES if pauses is None else pauses
        self.own_sampling = own_sampling
        self._without: list[str] = []
        try:
            self._http = http_client(server.base, key=server.key, patience=self.patience)
        except (ImportError, ValueError, OSError) as error:
            raise self.troubles.no_way(error) from error

    def answer(self, messages: Messages, decoding: Decoding) -> Reply:
        """The whole answer to a conversation."""
        return self._patiently(lambda: self._whole(self._pieces(messages, decoding)))

    def stream(self, messages: Messages, decoding: Decoding) -> Iterator[str]:
        """The same as it grows; leaving the loop early ends the generation."""
        first, rest = self._patiently(lambda: _begun(self._pieces(messages, decoding)))
        yield from hiding_key(self._texts(chain(first, rest)), self.server)

    def listed(self) -> list[Listed] | None:
        """The models that it has; None where it does not tell."""
        ollama = self.server.ollama
        try:
            found = self._patiently(lambda: self._told("/api/tags" if ollama else "/models"))
        except NotThere:
            return None
        try:
            return replies.ollama_listed(found) if ollama else replies.openai_listed(found)
        except ValueError as wrong:
            raise self.troubles.nonsense(str(wrong)) from wrong

    def version(self) -> str | None:
        """Ollama's; None where no Ollama answers."""
        try:
            version = self._told("/api/version").get("version")
        except SlimTuneError:
            return None
        return version if isinstance(version, str) else None

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        for pause in self.pauses:
            try:
                return ask()
            except Passing as trouble:
                seconds = max(pause, trouble.pause)
                _log.info("%s (%s): again in %.0f s", trouble.what, trouble.why, seconds)
                time.sleep(seconds)
        return ask()

    def _pieces(self, messages: Messages, decoding: Decoding) -> Iterator[Piece]:
        """The parts of one answer; asked again without what the server says it does not take."""
        while True:
            try:
                yield from self._asked(messages, decoding)
                return
            except Refused as error:
                self._do_without(error, decoding)

    def _do_without(self, error: Refused, decoding: Decoding) -> None:
        """Leaves out what the error names, where that changes nothing that was asked for."""
        named = [name for name in replies.MORE if re.search(rf"\b{name}\b", error.why)]
        new = [name for name in named if name not in self._without]
        if not new or self.server.ollama or any(replies.counts(name, decoding) for name in new):
            raise error
        self._without += new
        words = self.server.shown, ", ".join(new)
        _log.warning("caution: %s does not take %s: its own default counts there", *words)

    def _asked(self, messages: Messages, decoding: Decoding) -> Iterator[Piece]:
        model = self.server.model
        if self.server.ollama:
            place, read = "/api/chat", replies.ollama_piece
            body = replies.ollama_body(model, messages, decoding)
        else:
            place, read = "/chat/completions", replies.openai_piece
            body = replies.openai_body(model, messages, decoding, self._without)
        if self.own_sampling:
            body = replies.unsaid(body, decoding)
        with self._opened("POST", place, body) as response:
            for event in self._events(response):
                if (said := error_in(event)) is not None:
                    raise self.troubles.error_for_answer(said, response.status_code)
                try:
                    piece = read(event)
                except ValueError as wrong:
                    raise self.troubles.nonsense(str(wrong)) from wrong
                if piece.model is not None and not _same(piece.model, model):
                    raise self.troubles.other_model(piece.model)
                yield replace(piece, text=CONTROL.sub("", piece.text))

    def _texts(self, pieces: Iterator[Piece]) -> Iterator[str]:
        end = None
        for piece in pieces:
            end = end or piece.end
            yield piece.text
        if end is None:
            raise self.troubles.broken_off()

    def _whole(self, pieces: Iterator[Piece]) -> Reply:
        texts: list[str] = []
        times: list[float] = []
        end, tokens, prompt_tokens = None, None, None
        for piece in pieces:
            if piece.text:
                texts.append(piece.text)
                times.append(time.perf_counter())
            end = end or (piece if piece.end else None)
            tokens = tokens if piece.tokens is None else piece.tokens
            prompt_tokens = prompt_tokens if piece.prompt_tokens is None else piece.prompt_tokens
        if end is None:
            raise self.troubles.broken_off()
        seconds = times[-1] - times[0] if times else 0.0
        written = max((tokens or len(times)) - 1, 0)
        text = without_key("".join(texts), self.server).strip()
        return Reply(text, tokens, end.stopped, (written, seconds), prompt_tokens)

    def _told(self, place: str) -> dict[str, Any]:
        with self._opened("GET", place) as response:
            return self._object(self._body(response))

    @contextmanager
    def _opened(
        self, method: str, place: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[httpx2.Response]:
        """A response that says it is one; what the net does to it becomes an error of ours."""
        try:
            with self._http.stream(method, f"{self.server.base}{place}", json=body) as response:
                if response.status_code != 200:
                    said = self._body(response)
                    raise self.troubles.status(response.status_code, response.headers, said)
                yield response
        except (httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            raise self.troubles.silent(self.patience) from error
        except httpx2.SSEError as error:
            raise self.troubles.nonsense(str(error)) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self.troubles.no_connection(error) from error

    def _events(self, response: httpx2.Response) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream, or the one of a server that does not stream."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        texts: Iterator[str] = iter(())
        if kind == "text/event-stream":
            source = httpx2.EventSource(response, max_event_size=MOST)
            texts = (event.data for event in source)
        elif kind == "application/x-ndjson":
            texts = self._lines(response)
        else:
            texts = iter([self._body(response)])
        size = 0
        for text in texts:
            size += len(text)
            if size > MOST:
                raise self.troubles.nonsense(f"more than {MOST >> 20} MB")
            if text.strip() == "[DONE]":
                return
            if text.strip():
                yield self._object(text)

    def _lines(self, response: httpx2.Response) -> Iterator[str]:
        rest = ""
        for chunk in response.iter_text():
            *lines, rest = (rest + chunk).split("\n")
            yield from lines
            if len(rest) > MOST:
                raise self.troubles.nonsense(f"more than {MOST >> 20} MB")
        yield rest

    def _body(self, response: httpx2.Response) -> str:
        try:
            return body_of(response)
        except ValueError as error:
            raise self.troubles.nonsense(str(error)) from error

    def _object(self, text: str) -> dict[str, Any]:
        text = without_key(text, self.server)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        page, shown = is_page(text), text[:100]
        raise self.troubles.nonsense("a web page" if page else f"no JSON object: {shown!r}")


def _same(answered: str, asked: str) -> bool:
    """A name with a date after it is the same model's: gpt-4o is gpt-4o-2024-08-06."""
    return re.fullmatch(rf"{re.escape(asked)}(-\d{{4}}-?\d\d-?\d\d)?", answered) is not None


def _begun(pieces: Iterator[Piece]) -> tuple[list[Piece], Iterator[Piece]]:
    """The first piece, which shows that the request went well, and the rest."""
    first = next(pieces, None)
    return ([] if first is None else [first]), pieces
