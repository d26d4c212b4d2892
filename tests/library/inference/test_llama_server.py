"""llama.cpp's server in a child process: who reaches it, what it is asked, each way it can fail."""

import os
import signal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
from tiny_folders import write_tiny_llama
from tiny_ggufs import changed

from slimtune import prompts
from slimtune.errors import InputError, ResourceError
from slimtune.export.gguf_writer import write_gguf
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.llama_server import LlamaServer
from slimtune.models import tokenizers

pytestmark = pytest.mark.usefixtures("llama_cpp_as_users_start_it")
ASKED = [{"role": "user", "content": "The cat, 今天?"}]
ROOM = {"context": 256, "threads": 1}
SHORT = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), hidden=64, initializer_range=0.3)


@pytest.fixture(scope="module")
def greedy(folder):
    """A file whose own sampling settings say: the likeliest token."""
    write_gguf(folder, folder / "plain.gguf", "F32")
    return changed(folder / "plain.gguf", folder / "greedy.gguf", general__sampling__temp=0.0)


@pytest.fixture(scope="module")
def server(greedy):
    with LlamaServer(greedy, **ROOM) as server:
        yield server


def own_answer(gguf, folder, template: str) -> tuple[list[int], str]:
    tokenizer = tokenizers.load_tokenizer(folder)
    ids = prompts.encode_prompt(tokenizer, ASKED, prompts.template(template))
    with LlamaCpp(gguf, context=256, threads=1) as model:
        (found,) = model.generate([ids], SHORT)
    return ids, found.text


def test_it_answers_as_the_file_does(server, greedy, folder):
    ids, text = own_answer(greedy, folder, "llama2")
    answer = server.chat(ASKED, SHORT)
    assert (answer.prompt_tokens, answer.text) == (len(ids), text)
    assert server.chat(ASKED, SHORT).text == answer.text


def test_another_template_takes_the_place_of_the_files(greedy, folder):
    ids, text = own_answer(greedy, folder, "alpaca")
    with LlamaServer(greedy, chat_template=prompts.template("alpaca"), **ROOM) as server:
        answer = server.chat(ASKED, SHORT)
    assert (answer.prompt_tokens, answer.text) == (len(ids), text)


def test_it_samples_as_the_file_says(server, folder):
    assert server.sampling()["temperature"] == 0
    warm = {"general__sampling__temp": 0.5, "general__sampling__top_k": 7}
    file = changed(folder / "plain.gguf", folder / "warm.gguf", **warm)
    with LlamaServer(file, **ROOM) as other:
        assert (other.sampling()["temperature"], other.sampling()["top_k"]) == (0.5, 7)


def test_it_listens_on_this_machine_alone_and_answers_who_knows_its_key(server):
    listening = [one for one in psutil.Process(server.process).net_connections() if not one.raddr]
    port = urlsplit(server.address).port
    assert [(one.laddr.ip, one.laddr.port) for one in listening] == [("127.0.0.1", port)]
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{server.address}/props")


def test_nothing_of_it_is_left(greedy):
    with LlamaServer(greedy, **ROOM) as server:
        address, process = server.address, server.process
    assert not psutil.pid_exists(process)
    with pytest.raises(URLError, match="refused"):
        urlopen(f"{address}/health")


def test_a_server_that_dies_or_answers_late_is_told(greedy):
    with LlamaServer(greedy, **ROOM) as server:
        server.patience = 0.2  # only now: a busy machine may take longer to load
        os.kill(server.process, signal.SIGSTOP)
        # Until all its threads stand still: on a busy machine one of them answered after the kill.
        os.waitid(os.P_PID, server.process, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(ResourceError, match="gave no answer") as caught:
            server.chat(ASKED, SHORT)
        assert "silent for 0 s" in caught.value.why
        os.kill(server.process, signal.SIGKILL)
        server._child.wait()
        with pytest.raises(ResourceError, match="killed"):
            server.chat(ASKED, SHORT)


def test_a_conversation_that_it_refuses(server):
    with pytest.raises(ResourceError, match="gave no answer") as caught:
        server.chat([{"role": "user", "content": "cat " * 300}], SHORT)
    assert "(status 400)" in caught.value.why and "context" in caught.value.why


def test_files_that_are_no_model(greedy, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        LlamaServer(tmp_path / "missing.gguf")
    (tmp_path / "short.gguf").write_bytes(greedy.read_bytes()[:-5000])
    with pytest.raises(InputError, match="llama.cpp cannot load this file") as caught:
        LlamaServer(tmp_path / "short.gguf", **ROOM)
    assert "tensor 'blk." in caught.value.why
