"""llama.cpp's own server in the comparison: what it answers is what its file does, right or not."""

import shutil
from pathlib import Path

import pytest

from slimtune import prompts
from slimtune.config import Config, Evaluation, GenerationSection
from slimtune.errors import InputError, ResourceError
from slimtune.evaluation.comparison import Comparison, compare
from slimtune.export.gguf_writer import write_gguf
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_server import LlamaServer
from slimtune.inference.questions import Candidate
from slimtune.inference.served_models import served_candidate
from slimtune.inference.server_address import API_KEY, Server
from slimtune.inference.server_client import ServerClient
from slimtune.report.words import sentence

pytestmark = pytest.mark.usefixtures("in_process")
# Beginnings that the taught model goes on with: what random weights say is no text.
QUESTIONS = ["Once upon a time there was", "从前有一座小房子，", "A cat, 3", "每天早上，马都问"]


@pytest.fixture(scope="module")
def folder(taught_llama, tmp_path_factory) -> Path:
    folder = shutil.copytree(taught_llama, tmp_path_factory.mktemp("llama") / "base")
    (folder / "chat_template.jinja").write_text(prompts.template("llama2"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def gguf(folder) -> Path:
    """A file that says nothing of sampling: llama-server's own temperature is 0.8."""
    write_gguf(folder, folder.parent / "tiny.gguf", "F32")
    return folder.parent / "tiny.gguf"


@pytest.fixture(scope="module")
def server(gguf):
    with LlamaServer(gguf, context=512, threads=1) as running:
        yield running


@pytest.fixture(autouse=True)
def key(server, monkeypatch) -> None:
    monkeypatch.setenv(API_KEY, server.key)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Single questions, a system message, two turns."""
    found = [[{"role": "user", "content": text}] for text in QUESTIONS]
    found.append([{"role": "system", "content": "Answer in one word."}, *found[0]])
    found.append([*found[1], {"role": "assistant", "content": "很好"}, *found[3]])
    end = {"role": "assistant", "content": "7"}
    return [{"id": f"r{n}", "messages": [*asked, end]} for n, asked in enumerate(found)]


def compared(folder: Path, server: LlamaServer, rows: list[dict], **decoding) -> Comparison:
    settings = GenerationSection(max_new_tokens=12, **decoding)
    config = Config(generation=settings, evaluation=Evaluation())
    candidates = [Candidate("base", str(folder)), served_candidate(f"{server.address}/v1")]
    return compare(candidates, rows, prompts.template("llama2"), config, isolated=False)


def test_a_server_answers_as_the_model_that_it_runs(folder, gguf, server, rows):
    found = compared(folder, server, rows)
    base, served = found.outcomes
    assert [one.text for one in served.generations] == [one.text for one in base.generations]
    assert [one.stopped for one in served.generations] == [one.stopped for one in base.generations]
    cost, ours = found.measures[1]["cost"], found.measures[0]["cost"]
    assert cost["parameters"] == ours["parameters"] and cost["generated_tokens_per_second"] > 0
    assert 0 < cost["bytes_on_disk"] <= gguf.stat().st_size
    assert all(one.tokens for one in served.generations)
    assert found.measures[0]["perplexity"] and found.measures[1]["perplexity"] is None
    assert any("asked through its server" in sentence(one) for one in found.cautions)


def test_a_penalty_reaches_it(folder, server, rows):
    """It counts at temperature 0, too: what is not passed outright would be its own 1.0."""
    plain, penalised = (compared(folder, server, rows, repeat_penalty=p) for p in (1.0, 1.3))
    served = [[one.text for one in each.outcomes[1].generations] for each in (plain, penalised)]
    ours = [one.text for one in penalised.outcomes[0].generations]
    assert served[0] != served[1] == ours


def test_a_seed_reaches_it(server):
    asked = [{"role": "user", "content": QUESTIONS[0]}]
    with ServerClient(Server.of(served_candidate(f"{server.address}/v1").reference)) as client:
        told = [client.answer(asked, Decoding(12, temperature=1.5, seed=s)).text for s in (1, 1, 2)]
        grown = "".join(client.stream(asked, Decoding(12, temperature=1.5, seed=1)))
    assert told[0] == told[1] == grown.strip() != told[2]


def test_a_prompt_that_its_context_does_not_hold_is_its_own_words(server):
    asked = [{"role": "user", "content": "今天 " * 600}]
    with (
        ServerClient(Server.of(served_candidate(f"{server.address}/v1").reference)) as client,
        pytest.raises(InputError, match="does not take the request") as caught,
    ):
        client.answer(asked, Decoding(12))
    assert "context" in caught.value.why


def test_without_its_key_it_says_so(server, monkeypatch):
    monkeypatch.setenv(API_KEY, "wrong-key")
    with (
        ServerClient(Server.of(f"{server.address}/v1#any")) as client,
        pytest.raises(ResourceError, match="wants a key") as caught,
    ):
        client.answer([{"role": "user", "content": "?"}], Decoding(4))
    assert "wrong-key" not in str(caught.value)
