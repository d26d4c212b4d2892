"""An Ollama to hand a model to: an `ollama` on PATH that notes what it is told, and its server.

The server answers as the real one does that reads the Modelfile: SYSTEM first, the template of the
model, and llama.cpp's greedy answers of the file behind FROM. A test changes what it does wrong.
"""

import json
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Self

from fake_servers import Silence

from slimtune import prompts
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp

PROGRAM = """#!{python}
import json, os, pathlib, shutil, sys
folder = pathlib.Path({folder!r})
(folder / "told.json").write_text(json.dumps([sys.argv[1:], os.getcwd()]))
if {code}:
    sys.exit("pulling manifest\\nError: could not connect to ollama server, run 'ollama serve'")
shutil.copy(sys.argv[-1], folder / "Modelfile.seen")
"""
Reply = Callable[[dict], dict]


def install(folder: Path, monkeypatch, *, code: int = 0) -> None:
    """Puts an `ollama` first on PATH; what it is told lies in `folder`."""
    program = folder / "bin" / "ollama"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder), code=code))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


class FakeOllama(BaseHTTPRequestHandler):
    """/api/version, /api/show and /api/chat; `chat` gives the reply to a question's body.

    `asked` are the questions, `version` and `parameters` what it says of itself and of its model;
    before every reply there is `silence`.
    """

    asked: list[dict]
    version: str
    parameters: str
    silence: Silence | None
    chat: Reply

    def do_GET(self) -> None:
        self._reply({"version": self.version} if self.path == "/api/version" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self._reply({"parameters": self.parameters})
            return
        self.asked.append({"path": self.path, **body})
        self._reply(type(self).chat(body))

    def _reply(self, content: dict) -> None:
        if self.silence:
            self.silence.last()
        text = json.dumps(content).encode()
        self.send_response(200 if content else 500)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextmanager
def running(monkeypatch) -> Iterator[type[FakeOllama]]:
    """A server on a port of its own; OLLAMA_HOST names it, a proxy of the environment does not."""
    quiet = {"asked": [], "version": "0.33.0", "parameters": "", "silence": None}
    handler = type("Answering", (FakeOllama,), quiet | {"chat": staticmethod(lambda body: {})})
    http = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"0.0.0.0:{http.server_port}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    try:
        yield handler
    finally:
        http.shutdown()
        http.server_close()


def said(text: str, prompt_tokens: int | None) -> dict:
    """A reply of /api/chat."""
    message = {"role": "assistant", "content": text}
    return {"message": message, "done": True, "prompt_eval_count": prompt_tokens}


class AsOllamaDoes:
    """Replies of the model whose Modelfile lies in `folder`, created from the directory `work`.

    `template` is the jinja source that its TEMPLATE renders alike. Use it in a `with` block.
    """

    def __init__(self, folder: Path, work: Path, template: str) -> None:
        self.modelfile, self.work, self.template = folder / "Modelfile.seen", work, template
        self.loaded = ExitStack()

    def __call__(self, body: dict) -> dict:
        text = self.modelfile.read_text(encoding="utf-8")
        system = re.search(r'^SYSTEM "([^"]*)"$', text, re.MULTILINE)
        messages = body["messages"]
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system[1]}, *messages]
        asked = prompts.render(
            messages, self.template, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
        ).removeprefix("<s>")
        ids = self.model.tokenize(asked)
        (answer,) = self.model.generate([ids], Decoding(body["options"]["num_predict"]))
        return said(answer.text, len(ids))

    @cached_property
    def model(self) -> LlamaCpp:
        text = self.modelfile.read_text(encoding="utf-8")
        layers = dict(re.findall(r'^(FROM|ADAPTER) "(.*)"$', text, re.MULTILINE))
        adapter = self.work / layers["ADAPTER"] if "ADAPTER" in layers else None
        model = LlamaCpp(self.work / layers["FROM"], adapter=adapter, context=512, threads=1)
        return self.loaded.enter_context(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loaded.close()
