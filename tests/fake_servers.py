"""A server of language models in a thread: it answers as it is told to, rightly or not.

with FakeServer(model="tiny") as server:
    server.say = lambda body: "Hello"            # every question gets this
    server.next.append(Said(503, "Loading"))     # the next request gets that instead
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

EVENTS, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"


class Silence:
    """Of a server: `begun` once a request is there, and over at the end of the `with` block.

    Whoever asks runs out of patience in between, however busy the machine is.
    """

    def __init__(self) -> None:
        self.begun, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def last(self) -> None:
        self.begun.set()
        self._over.wait()


@dataclass
class Said:
    """One response: after `text` the connection ends, or breaks where `broken`."""

    status: int = 200
    text: str = ""
    kind: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    broken: bool = False
    silence: Silence | None = None  # before it


def openai_answer(text: str, model: str, end: str = "stop", tokens: int | None = None) -> Said:
    """A streamed answer, two characters a piece, with the event that counts at its end."""
    parts = [text[at : at + 2] for at in range(0, len(text), 2)]
    events: list[dict[str, Any]] = [
        {"model": model, "choices": [{"delta": {"role": "assistant", "content": None}}]}
    ]
    events += [{"model": model, "choices": [{"delta": {"content": part}}]} for part in parts]
    events += [{"model": model, "choices": [{"delta": {}, "finish_reason": end}]}]
    usage = {"completion_tokens": len(parts) if tokens is None else tokens}
    events += [{"model": model, "choices": [], "usage": usage}]
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return Said(kind=EVENTS, text="".join([": a comment\n\n", *lines, "data: [DONE]\n\n"]))


def ollama_answer(text: str, model: str, end: str = "stop") -> Said:
    parts = [text[at : at + 2] for at in range(0, len(text), 2)]
    events = [{"model": model, "message": {"content": part}, "done": False} for part in parts]
    last = {"message": {"content": ""}, "done": True, "done_reason": end, "eval_count": len(parts)}
    events.append({"model": model, **last})
    return Said(kind=LINES, text="".join(f"{json.dumps(event)}\n" for event in events))


class FakeServer:
    """`asked` are the questions it got (bodies), `seen` all requests (method, path, headers)."""

    def __init__(self, model: str = "tiny", ollama: bool = False) -> None:
        self.model, self.ollama = model, ollama
        self.say: Callable[[dict[str, Any]], str] = lambda body: "Hello there"
        self.next: list[Said] = []
        self.listing: Said | None = None
        self.asked: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    @property
    def address(self) -> str:
        return f"http://{self.host}/v1"

    def __enter__(self) -> Self:
        handler = type("Answering", (_Handler,), {"told": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def reply(self, method: str, path: str, body: dict[str, Any] | None) -> Said:
        if method == "POST":
            self.asked.append(body or {})
            if self.next:
                return self.next.pop(0)
            answer = ollama_answer if self.ollama else openai_answer
            return answer(self.say(body or {}), (body or {})["model"])
        if path == "/api/version":
            return Said(text='{"version": "0.33.0"}') if self.ollama else Said(404, "{}")
        if self.listing is not None:
            return self.listing
        if self.ollama:
            entry = {"name": self.model, "digest": "abc", "size": 1234}
            return Said(text=json.dumps({"models": [entry]}))
        meta = {"n_params": 1000, "size": 4000}
        return Said(
            text=json.dumps({"data": [{"id": self.model, "created": time.time(), "meta": meta}]})
        )


class _Handler(BaseHTTPRequestHandler):
    told: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.told.reply("GET", self.path, None))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(self.told.reply("POST", self.path, body))

    def _answer(self, said: Said) -> None:
        self.told.seen.append((self.command, self.path, dict(self.headers)))
        if said.silence:
            said.silence.last()
        content = said.text.encode()
        self.send_response(said.status)
        self.send_header("Content-Type", said.kind)
        self.send_header("Content-Length", str(len(content) + said.broken))
        for name, value in said.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except OSError:  # the client went away
            said.broken = True
        self.close_connection = said.broken

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
