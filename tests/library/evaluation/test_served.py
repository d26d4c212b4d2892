"""Models that servers run: which is meant, their column, and what a server that dies leaves."""

import csv
import json
import re
from pathlib import Path

import pytest
from fake_servers import Said
from running import refused, succeeds
from tiny_ggufs import put_into_ollama

from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.inference import server_client
from slimtune.inference.served_models import served_candidate
from slimtune.inference.server_address import API_KEY

KEY = "sk-secret-123"


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    """Nobody waits between two tries, nor for an Ollama of this machine."""
    monkeypatch.setattr(server_client.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.delenv(API_KEY, raising=False)


def listing(*names: str) -> Said:
    return Said(text=json.dumps({"data": [{"id": name} for name in names]}))


def test_the_only_model_of_a_server_needs_no_name(server):
    found = served_candidate(server.address)
    assert (found.label, found.kind) == (f"tiny@{server.host}", "server")
    assert found.reference == f"{server.address}#tiny"


def test_the_clock_of_a_listing_does_not_make_another_model(server):
    first, again = (served_candidate(server.address) for _ in range(2))
    server.listing = Said(text='{"data": [{"id": "tiny", "meta": {"n_params": 7}}]}')
    assert first == again != served_candidate(server.address)


def test_a_server_of_several_models_asks_which(server):
    server.listing = listing("a", "b/c")
    with pytest.raises(SettingsError, match="which model") as caught:
        served_candidate(server.address)
    assert "a, b/c" in caught.value.why and f"{server.address}#a" in caught.value.cure
    assert served_candidate(f"{server.address}#b/c").label == f"c@{server.host}"


def test_a_model_that_a_server_lacks(server):
    server.listing = listing("qwen3-0.6b", *(f"other{number}" for number in range(9)))
    with pytest.raises(InputError, match="no such model") as caught:
        served_candidate(f"{server.address}#qwen3-0.5b")
    assert f"write {server.address}#qwen3-0.6b" in caught.value.cure
    assert caught.value.why.endswith("and 2 more")


def test_a_server_that_lists_nothing_is_believed_about_a_name(server):
    server.listing = Said(404, "{}")
    assert served_candidate(f"{server.address}#any").reference == f"{server.address}#any"
    with pytest.raises(SettingsError, match="which model"):
        served_candidate(server.address)


@pytest.mark.parametrize("listed", ["[]", '{"data": 1}', "<html>"])
def test_a_listing_that_is_none(listed, server):
    server.listing = Said(text=listed)
    with pytest.raises(InputError, match="no answer"):
        served_candidate(server.address)


def test_a_listed_name_that_a_terminal_would_obey_is_passed_over(server):
    server.listing = listing("\x1b[2J", "x" * 2000, "ok")
    assert served_candidate(server.address).label == f"ok@{server.host}"


def test_a_server_that_is_not_there_is_told_at_once():
    with pytest.raises(ResourceError, match="no connection"):
        served_candidate("http://127.0.0.1:9/v1#tiny")


@pytest.mark.parametrize("name", ["llama3.2", "llama3.2:latest", "Llama3.2"])
def test_ollama_is_asked_where_it_runs(name, ollama):
    found = served_candidate(f"ollama:{name}")
    assert (found.label, found.reference) == (f"{name}@ollama", f"ollama:{name}")
    assert found.fingerprint == "abc"


def test_a_model_that_ollama_lacks(ollama):
    with pytest.raises(InputError, match="no such model") as caught:
        served_candidate("ollama:llama3.3")
    assert "`ollama pull llama3.3`" in caught.value.cure
    assert "ollama:llama3.2:latest" in caught.value.cure
    with pytest.raises(SettingsError, match="no name of a model"):
        served_candidate("ollama:../x")


def test_without_ollama_its_file_is_read(tmp_path, monkeypatch, capsys):
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(put_into_ollama(tmp_path / "store", "tiny:1", file)))
    found = served_candidate("ollama:tiny:1")
    assert (found.label, found.kind) == ("tiny-1", "gguf")
    assert "no Ollama answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_something_else_on_ollamas_port_is_no_ollama(server, monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_HOST", server.host)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    with pytest.raises(InputError, match="not in Ollama's store"):
        served_candidate("ollama:tiny")


@pytest.fixture
def words(settings, rows, tmp_path) -> tuple:
    output = tmp_path / "r.csv"
    return "evaluate_model", *settings, "--lora-model", "null", "--output", output


@pytest.fixture
def asked(rows) -> list[dict]:
    """The test rows."""
    lines = (rows / "train_test.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answers_of(asked: list[dict]):
    """Answers every question rightly."""
    right = {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in asked}
    return lambda body: right[body["messages"][-1]["content"]]


def metrics_in(folder: Path) -> dict:
    return json.loads((folder / "r_metrics.json").read_text("utf-8"))


@pytest.mark.usefixtures("in_process")
def test_a_server_is_a_column_of_table_csv_and_report(words, asked, server, tmp_path, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    server.say = answers_of(asked)
    flags = ("--models", f"{server.address}#tiny", "--language", "zh")
    ran = succeeds(*words, *flags)
    label = f"tiny@{server.host}"
    base, tiny = metrics_in(tmp_path)["models"]
    assert (tiny["label"], tiny["kind"]) == (label, "server")
    assert tiny["exact_match"]["score"] == 100 and tiny["exact_match"]["verdict"] == "better"
    assert base["perplexity"] and base["token_accuracy"], "they are lost where a server has none"
    assert tiny["perplexity"] is None and tiny["bits_per_byte"] is None
    assert tiny["cost"]["seconds"] > 0 and tiny["cost"]["generated_tokens_per_second"] > 0
    assert (tiny["cost"]["parameters"], tiny["cost"]["bytes_on_disk"]) == (1000, 4000)
    assert tiny["answer_tokens"] > 0 and tiny["cost"]["peak_memory_bytes"] is None
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    answers = [row["messages"][-1]["content"] for row in asked]
    assert [row[f"{label} answer"].removeprefix("'") for row in table] == answers
    assert {row[f"{label} reference nats"] for row in table} == {"–"}
    assert label in ran.out and "通过它的服务器提问" in ran.err
    for body, row in zip(server.asked, asked, strict=True):
        assert body["messages"] == row["messages"][:-1]
        assert (body["temperature"], body["max_tokens"]) == (0, 12)
    page = (tmp_path / "report.html").read_text("utf-8")
    report = (tmp_path / "training_report.md").read_text("utf-8")
    assert label in page and label in report and "服务器" in report and "None" not in report
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY not in file.read_text("utf-8", "replace"), file


@pytest.mark.usefixtures("in_process")
def test_a_server_that_dies_resumes(words, asked, server, tmp_path, caplog):
    half = len(asked) // 2
    server.say = answers_of(asked)
    whole = server.reply

    def dying(method: str, path: str, body: dict | None) -> Said:
        reply = whole(method, path, body)
        return reply if len(server.asked) <= half else Said(text="data: {", broken=True)

    server.reply = dying
    flags = ("--models", f"{server.address}#tiny")
    error = refused(4, f"{server.address}#tiny: ", *words, *flags)
    assert "the answers so far are kept" in error[2]
    assert (tmp_path / "r.answers.partial").is_dir() and not (tmp_path / "r.csv").exists()
    server.reply = whole
    server.asked.clear()
    succeeds(*words, *flags)
    assert len(server.asked) == len(asked) - half
    assert metrics_in(tmp_path)["models"][1]["exact_match"]["score"] == 100
    assert not (tmp_path / "r.answers.partial").exists()


@pytest.mark.usefixtures("in_process")
def test_another_model_of_the_same_name_is_asked_anew(words, asked, server, tmp_path):
    flags = ("--models", f"{server.address}#tiny", "--max-rows", "2")
    answered = server.reply
    server.reply = lambda *request: Said(400, "{}") if server.asked else answered(*request)
    refused(3, "does not take the request", *words, *flags)
    server.reply = answered
    server.listing = Said(text='{"data": [{"id": "tiny", "meta": {"n_params": 7}}]}')
    server.asked.clear()
    succeeds(*words, *flags)
    assert len(server.asked) == 2


@pytest.mark.usefixtures("in_process")
def test_a_sampled_decoding_is_the_rows_own(words, server):
    flags = ("--models", server.address, "--temperature", "0.7", "--top-k", "5", "--max-rows", "3")
    succeeds(*words, *flags)
    assert {body["temperature"] for body in server.asked} == {0.7}
    assert {body["top_k"] for body in server.asked} == {5}
    assert len({body["seed"] for body in server.asked}) == 3


@pytest.mark.usefixtures("in_process")
def test_prompts_that_others_lose_the_start_of_are_refused(words, server):
    flags = ("--models", server.address, "--max-length", "20", "--max-new-tokens", "4")
    refused(3, "would be cut elsewhere", *words, *flags)
    assert server.asked == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_a_server_that_is_not_there_is_told_before_any_model_is_asked(dry, words, tmp_path):
    refused(4, "no connection", *words, "--models", "http://127.0.0.1:9/v1#tiny", *dry)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_the_server_and_asks_nothing(words, server, tmp_path):
    ran = succeeds(*words, "--models", server.address, "--dry-run")
    assert f"models: base, tiny@{server.host}" in ran.out
    assert server.asked == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["train_lora", "convert_to_gguf", "evaluate_model"])
def test_a_server_lends_no_weights(script, settings):
    flag = "--model-path" if script == "convert_to_gguf" else "--base-model"
    error = refused(2, "the address of a server", script, *settings, flag, "http://box:8080/v1#m")
    assert "--models" in error[2]


def test_a_chat_with_a_server(settings, server):
    """The whole conversation goes out each time; nothing but the address is needed."""
    nowhere = ("--base-model", "./no-base", "--lora-model", "./no-adapter")
    typed = "/system Briefly.\nWho are you?\nAnd then?\n/exit\n"
    server.say = lambda body: f"answer {len(body['messages'])}"
    flags = ("--interactive", "--models", server.address, *nowhere)
    ran = succeeds("evaluate_model", *settings, *flags, stdin=typed)
    assert "> answer 2\n> answer 4\n" in ran.out
    assert f"chatting with tiny@{server.host}" in ran.err
    roles = [message["role"] for message in server.asked[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert server.asked[-1]["temperature"] == 0


def test_both_side_by_side(settings, server):
    server.say = lambda body: "I am a server."
    flags = ("--interactive", "--models", server.address, "--lora-model", "null")
    typed = "/both base\nWhat did the cat do on day 99?\n/model base\nAnd you?\n/exit\n"
    ran = succeeds("evaluate_model", *settings, *flags, "--max-new-tokens", "4", stdin=typed)
    assert "I am a server." in ran.out and f"talking to tiny@{server.host} and base" in ran.out
    assert len(server.asked) == 1


def test_a_chat_goes_on_after_a_servers_error(settings, server):
    server.next = [Said(400, '{"error": {"message": "exceeds the context"}}')]
    flags = ("--interactive", "--models", server.address, "--lora-model", "null")
    ran = succeeds("evaluate_model", *settings, *flags, stdin="Too long?\nAnd now?\n/exit\n")
    assert "exceeds the context" in ran.out and "Hello there" in ran.out
    assert [message["role"] for message in server.asked[-1]["messages"]] == ["user"]


@pytest.mark.usefixtures("in_process")
def test_a_server_can_be_the_baseline(words, asked, server, tmp_path):
    """Is mine better than the one I run: what the server lacks compares with nothing."""
    server.say, server.listing = answers_of(asked), listing("tiny")  # neither size nor parameters
    label = f"tiny@{server.host}"
    succeeds(*words, "--models", server.address, "--baseline", label)
    tiny, base = metrics_in(tmp_path)["models"]
    assert (tiny["label"], base["exact_match"]["verdict"]) == (label, "worse")
    assert base["perplexity"]["score"] > 0 and base["perplexity"]["verdict"] is None
    assert base["token_accuracy"] and base["bits_per_byte"]
    assert tiny["cost"]["bytes_on_disk"] is None
    for name in ("training_report.md", "report.html"):
        assert not re.search(r"\bNone\b(?! of)", (tmp_path / name).read_text("utf-8")), name
