"""The handover to Ollama: an `ollama` that records what it was told, and a server that answers."""

import json
import os
import stat
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from running import files_under, refused, succeeds
from tiny_folders import write_tiny_llama

from slimtune import prompts
from slimtune.console import ResourceError
from slimtune.export import ollama
from slimtune.models import tokenizers

PROGRAM = """#!{python}
import json, os, pathlib, shutil, sys
folder = pathlib.Path({folder!r})
(folder / "told.json").write_text(json.dumps([sys.argv[1:], os.getcwd()]))
if {code}:
    sys.exit("pulling manifest\\nError: could not connect to ollama server, run 'ollama serve'")
shutil.copy(sys.argv[-1], folder / "Modelfile.seen")
"""


class Server(BaseHTTPRequestHandler):
    """Ollama's /api/chat, as far as a question needs it."""

    asked: list[dict]
    reply: dict

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append({"path": self.path, **body})
        text = json.dumps(self.reply).encode()
        self.send_response(200 if self.reply else 500)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server(monkeypatch) -> type[Server]:
    """A server on a port of its own; OLLAMA_HOST names it, a proxy of the environment does not."""
    handler = type("Answering", (Server,), {"asked": [], "reply": {}})
    http = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"0.0.0.0:{http.server_port}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    yield handler
    http.shutdown()
    http.server_close()


def install(folder: Path, monkeypatch, *, code: int = 0) -> None:
    """Puts an `ollama` first on PATH."""
    program = folder / "bin" / "ollama"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder), code=code))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"), hidden=64, initializer_range=0.3)


@pytest.fixture
def words(model, tmp_path, monkeypatch) -> list[object]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "config.yaml").write_text("gguf: {model_name: tiny, quantization: F16}\n")
    (work / "rows.jsonl").write_text('{"instruction": "The cat?", "output": "Sat."}\n')
    words = ["--config", "config.yaml", "--model-path", model, "--output-dir", "out"]
    return [*words, "--test-data", "rows.jsonl", "--system-prompt", "Be brief.", "--ollama-create"]


def length(model: Path, *messages: dict[str, str]) -> int:
    template = prompts.template("llama2")
    return len(prompts.encode_prompt(tokenizers.load_tokenizer(model), messages, template))


SYSTEM = {"role": "system", "content": "Be brief."}
CAT = {"role": "user", "content": "The cat?"}


def test_the_model_is_created_and_asked(words, model, server, tmp_path, monkeypatch) -> None:
    install(tmp_path, monkeypatch)
    count = length(model, SYSTEM, CAT)
    server.reply = {"message": {"content": " Sat.\n"}, "prompt_eval_count": count}
    ran = succeeds("convert_to_gguf", *words)
    arguments, folder = json.loads((tmp_path / "told.json").read_text())
    assert arguments == ["create", "tiny", "-f", "Modelfile"]
    assert Path(folder) == tmp_path / "work"
    assert (tmp_path / "Modelfile.seen").read_text().startswith('FROM "./out/tiny-F16.gguf"\n')
    (asked,) = server.asked
    assert (asked["path"], asked["model"], asked["stream"]) == ("/api/chat", "tiny", False)
    assert asked["messages"] == [CAT] and asked["options"]["temperature"] == 0
    assert "ollama: 'Sat.' to 'The cat?'" in ran.out
    assert ran.out.endswith("next:  ollama run tiny\n")
    assert "Ollama made" not in ran.err


def test_another_length_than_in_training_is_a_warning(
    words, server, tmp_path, monkeypatch, caplog
) -> None:
    install(tmp_path, monkeypatch)
    server.reply = {"message": {"content": "Sat."}, "prompt_eval_count": 3}
    succeeds("convert_to_gguf", *words)
    assert "Ollama made 3 tokens of the prompt, training" in caplog.text


def test_a_name_with_user_and_tag_names_the_files_too(
    words, model, server, tmp_path, monkeypatch
) -> None:
    install(tmp_path, monkeypatch)
    server.reply = {"message": {"content": "Sat."}}
    ran = succeeds("convert_to_gguf", *words, "--model-name", "me/tiny:v1.2")
    assert json.loads((tmp_path / "told.json").read_text())[0][1] == "me/tiny:v1.2"
    assert (
        (tmp_path / "Modelfile.seen").read_text().startswith('FROM "./out/me-tiny-v1.2-F16.gguf"')
    )
    assert ran.out.endswith("next:  ollama run me/tiny:v1.2\n")


def test_a_name_that_ollama_refuses_is_told_before_the_work(words, tmp_path) -> None:
    words = [*words[:-1], "--model-name", "客服"]
    for flags in (["--create-modelfile"], ["--create-modelfile", "--dry-run"]):
        refused(2, "no name that Ollama takes", "convert_to_gguf", *words, *flags)
    assert not (tmp_path / "work/out").exists()
    succeeds("convert_to_gguf", *words)  # without Ollama, a file may be called so
    assert (tmp_path / "work/out/客服-F16.gguf").is_file()


def test_without_ollama_nothing_is_begun(words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(4, "no ollama on PATH", "convert_to_gguf", *words)
    refused(4, "no ollama on PATH", "convert_to_gguf", *words, "--dry-run")
    assert not (tmp_path / "work/out").exists()


def test_ollama_that_fails_says_why_and_the_files_stay(words, tmp_path, monkeypatch) -> None:
    install(tmp_path, monkeypatch, code=1)
    error = refused(4, "could not connect to ollama server", "convert_to_gguf", *words)
    assert "`ollama create tiny -f Modelfile` ended with exit code 1" in error[0]
    assert {"Modelfile", "out/tiny-F16.gguf"} <= set(files_under(tmp_path / "work"))


def test_a_server_that_does_not_answer(server, monkeypatch) -> None:
    with pytest.raises(ResourceError, match="does not answer") as caught:
        ollama.ask("tiny", [CAT])
    assert "500" in caught.value.why
    server.reply = {"error": "no message"}
    with pytest.raises(ResourceError, match="does not answer"):
        ollama.ask("tiny", [CAT])
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    with pytest.raises(ResourceError, match="127.0.0.1:9: Ollama created tiny"):
        ollama.ask("tiny", [CAT])


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--system-prompt", 'say """x"""'], 3, 'it holds """'),
        (["--system-prompt", "a\u200db"], 3, "U+200D"),
    ],
)
def test_what_no_modelfile_can_say_is_told_before_the_work(
    flags, code, sentence, words, tmp_path
) -> None:
    words = [*words[:-1], "--create-modelfile", *flags]
    refused(code, sentence, "convert_to_gguf", *words)
    assert not (tmp_path / "work/out").exists()


def test_a_model_with_a_foreign_template(words, tmp_path, caplog) -> None:
    foreign = write_tiny_llama(tmp_path / "foreign", hidden=64)
    source = "{% for m in messages %}{{ m.content|upper + eos_token }}{% endfor %}"
    (foreign / "chat_template.jinja").write_text(source)
    words = [*words[:-1], "--model-path", foreign]
    for more in ([], ["--dry-run"]):
        refused(2, "no twin for Ollama", "convert_to_gguf", *words, "--create-modelfile", *more)
    assert not (tmp_path / "work/out").exists()
    succeeds("convert_to_gguf", *words)
    assert "its own chat template" not in caplog.text
    succeeds("convert_to_gguf", *words, "--prompt-template", "llama2", "--overwrite")
    assert "its own chat template, which is not llama2" in caplog.text


@pytest.mark.parametrize(("holds", "context"), [(256, 256), (131072, 4096)])
def test_the_context_is_the_models_up_to_4096(holds, context, tmp_path, monkeypatch) -> None:
    """Not this run's max_length: a model of 8,192 positions was cut to the 128 of its rows."""
    monkeypatch.chdir(tmp_path)
    model = write_tiny_llama(tmp_path / "model", hidden=64, max_position_embeddings=holds)
    words = ("--model-path", model, "--output-dir", "out", "--verify", "off", "--create-modelfile")
    succeeds("convert_to_gguf", *words)
    assert f"PARAMETER num_ctx {context}\n" in (tmp_path / "Modelfile").read_text()
