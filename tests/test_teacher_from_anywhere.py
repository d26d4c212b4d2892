"""Teachers that are no folder: a GGUF file in llama.cpp, a server, a model of Ollama's."""

import json
import shutil
import threading
from pathlib import Path

import pytest
from fake_servers import FakeServer, Said, Silence
from running import Ran, files_under, refused, run, succeeds
from safetensors.torch import load_file
from tiny_ggufs import changed, put_into_ollama

from slimtune.inference import served_models, server_client
from slimtune.inference.gguf_tokenizer import tokens_of
from slimtune.inference.server_address import API_KEY
from slimtune.models import tokenizers
from slimtune.models.gguf_header import read_gguf
from slimtune.training import distillation_stage, gguf_teacher, gguf_vocabulary, pipeline

QUICK = ("--epochs", 1)
KEY = "sk-secret-123"


@pytest.fixture(autouse=True)
def at_once(monkeypatch, caplog) -> None:
    """Nobody waits between two tries, nor for an Ollama of this machine."""
    monkeypatch.setattr(server_client.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.delenv(API_KEY, raising=False)
    caplog.set_level("INFO", "slimtune")


@pytest.fixture
def words(settings, pruned, tmp_path):
    """A run of one epoch with a teacher, in a folder of the test's own."""

    def told(teacher: object, *more: object) -> tuple:
        places = ("--output-dir", tmp_path / "out", "--cache-dir", tmp_path / "cache")
        teaching = ("--teacher-model", teacher, *QUICK, *places, *more)
        return "knowledge_distillation", *settings, *teaching

    return told


@pytest.fixture
def asks(monkeypatch):
    """The same run up to the point where the student would begin to learn."""

    def stopped(*told: object) -> None:
        raise KeyboardInterrupt

    def asked(*words: object) -> Ran:
        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "train", stopped)
            ran = run(*words)
        assert ran.code == 130, ran.err
        return ran

    return asked


def record(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out/run.json").read_text())


def kept(tmp_path: Path) -> list[dict]:
    """The lines that a stopped run has left, one an answer."""
    (file,) = (tmp_path / "cache").glob("*.kept.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines() if line]


# A GGUF file


def test_a_gguf_fills_the_cache_as_the_folder_does_it_was_made_from(
    words, project, distilled, gguf, tmp_path, caplog
) -> None:
    ran = succeeds(*words(gguf))
    assert "llama.cpp reads" in caplog.text and "unpacking" not in ran.err
    (theirs,), (ours,) = ((one / "cache").glob("[!.]*") for one in (project, tmp_path))
    found, wanted = (load_file(folder / "part-00000.safetensors") for folder in (ours, theirs))
    assert found["starts"].tolist() == wanted["starts"].tolist()
    assert [one.dtype for one in found.values()] == [one.dtype for one in wanted.values()]
    # llama.cpp's cache has 16 bits: two that are as likely change places.
    first = (found["ids"][:, 0] == wanted["ids"][:, 0]).double().mean()
    assert first > 0.97
    apart = found["log_probabilities"][:, 0].float() - wanted["log_probabilities"][:, 0].float()
    assert apart.abs().median() < 0.02
    says_which_file(tmp_path / "out", gguf)


def says_which_file(student: Path, gguf: Path) -> None:
    """run.json and card name the file, its bytes and its sum."""
    run = json.loads((student / "run.json").read_text())
    sealed = json.loads(gguf.with_name("tiny-F16_run.json").read_text())
    named = next(one for one in run["inputs"] if one["path"] == str(gguf))
    assert named["run_id"] == sealed["run_id"]
    facts, known = run["metrics"], sealed["files"][gguf.name]
    assert facts["teacher_file"] == gguf.name and facts["teacher_bytes"] == known["bytes"]
    assert facts["teacher_sha256"] == known["sha256"]
    card = (student / "README.md").read_text(encoding="utf-8")
    assert f"taught by {gguf.name}" in card and known["sha256"] in card


def test_a_pass_that_was_stopped_goes_on_with_the_row_after_it(
    words, gguf, tmp_path, monkeypatch
) -> None:
    read = []

    def stopping(loss, file, row) -> None:
        read.append(row)
        if len(read) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_teacher, "_require_finite", stopping)
        assert run(*words(gguf)).code == 130
    left = {int(file.stem) for file in tmp_path.glob("cache/*.rows/*.top")}
    assert len(left) >= 5
    again = []
    monkeypatch.setattr(gguf_teacher, "_require_finite", lambda *told: again.append(told[2]))
    succeeds(*words(gguf))
    assert again and not left <= set(again)  # but for those of a round that was cut short
    assert not list(tmp_path.glob("cache/*.rows"))


def test_a_dry_run_says_what_the_file_takes_and_unpacks_nothing(words, gguf, tmp_path) -> None:
    ran = succeeds(*words(gguf, "--dry-run"))
    assert "alone and before the student" in ran.out and "on disk for" in ran.out
    assert "unpacked" not in ran.out and not files_under(tmp_path)


def test_beside_the_student_a_file_is_unpacked_as_any_other(words, gguf, tmp_path) -> None:
    (tmp_path / "c.yaml").write_text("")  # so that nothing is unpacked into the project
    ran = succeeds(*words(gguf, "--mode", "online", "--dry-run"))
    assert "unpacked/tiny-F16" in ran.out


@pytest.fixture(scope="module")
def foreign(gguf, tmp_path_factory) -> Path:
    """A file that calls two tokens by each other's name."""
    tokens = [token.decode() for token in tokens_of(read_gguf(gguf)).tokens]
    tokens[300], tokens[301] = tokens[301], tokens[300]
    file = tmp_path_factory.mktemp("foreign") / "foreign.gguf"
    return changed(gguf, file, tokenizer__ggml__tokens=tokens)


def test_a_file_with_other_tokens_writes_answers(words, asks, foreign, tmp_path, caplog) -> None:
    asks(*words(foreign, "--answer-tokens", 24))
    assert "its vocabulary is another: token" in caplog.text and "--mode sequence" in caplog.text
    (answers,) = (tmp_path / "cache").glob("[!.]*")
    assert answers.name.startswith("answers-")
    facts = json.loads((answers / "run.json").read_text())["metrics"]
    assert facts["teacher_file"] == foreign.name and len(facts["teacher_sha256"]) == 64
    said = refused(3, "no teacher for --mode cached", *words(foreign, "--mode", "cached"))
    assert "--mode sequence" in said[2]


def test_a_file_that_says_less_tokens_or_more(gguf, merged, tmp_path) -> None:
    student = tokenizers.load_tokenizer(merged).get_vocab()
    assert gguf_vocabulary.difference(read_gguf(gguf), student) is None
    tokens = tokens_of(read_gguf(gguf))
    texts = [token.decode() for token in tokens.tokens]
    filled = [*texts, "[PAD512]", "[PAD513]"]
    types = [*map(int, tokens.types), 5, 5]
    for name, told, difference in (
        ("filled", filled, None),
        ("more", [*texts, "one", "two"], "it has 2 tokens that the student lacks"),
        ("fewer", texts[:-1], "is none of its"),
        ("other", [*texts[:300], "?", *texts[301:]], "token 300 is '?' there"),
    ):
        kinds = types[: len(told)] if name != "more" else [*types[:-2], 1, 1]
        lists = {"tokenizer__ggml__tokens": told, "tokenizer__ggml__token_type": kinds}
        lists["tokenizer__ggml__scores"] = [0.0] * len(told)
        file = changed(gguf, tmp_path / f"{name}.gguf", **lists)
        found = gguf_vocabulary.difference(read_gguf(file), student)
        assert found is None if difference is None else difference in found


def test_the_combined_run_asks_a_gguf_too(settings, gguf, tmp_path) -> None:
    flags = ("--teacher-model", gguf, "--stages", "prune,cache", "--output-dir", tmp_path / "all")
    succeeds("train_pruned_distilled", *settings, *flags, "--cache-dir", tmp_path / "cache")
    run = json.loads((tmp_path / "all/teacher_cache/run.json").read_text())
    assert run["metrics"]["teacher_file"] == gguf.name
    assert (Path(run["metrics"]["cache"]) / "cache.json").is_file()


@pytest.fixture
def cached(words, tmp_path, monkeypatch, caplog):
    """The names of the caches once this teacher has been asked; nobody learns from it."""

    def stopped(*told: object) -> None:
        raise KeyboardInterrupt

    def asked(teacher: Path) -> set[str]:
        with monkeypatch.context() as patched:
            patched.setattr(distillation_stage, "_load_whole", stopped)
            ran = run(*words(teacher))
        assert ran.code == 130, ran.err
        return {one.name for one in (tmp_path / "cache").glob("[!.]*")}

    return asked


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_other_bytes_behind_the_same_name_are_another_teacher(
    words, cached, gguf, tmp_path, caplog
) -> None:
    file = Path(shutil.copyfile(gguf, tmp_path / "mine.gguf"))
    first = cached(file)
    assert cached(file) == first and "are cached already" in caplog.text
    flip_last_byte(file)
    assert len(first) == 1 and len(cached(file) - first) == 1
    record = gguf.with_name("tiny-F16_run.json").read_text()
    (tmp_path / "mine_run.json").write_text(record.replace(gguf.name, file.name))
    refused(3, "mine.gguf", *words(file))  # what our record says is held against it


@pytest.mark.parametrize("code", ["damaged", "missing", "text"])
def test_a_file_that_is_no_teacher(code, words, gguf, tmp_path) -> None:
    file = tmp_path / "x.gguf"
    if code != "missing":
        whole = gguf.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if code == "damaged" else b"hello there")
    before = files_under(tmp_path)
    refused(3, "x.gguf", *words(file))
    assert files_under(tmp_path) == before


# A server


@pytest.fixture
def server(rows):
    with FakeServer() as fake:
        fake.say = lambda body: f"It is {len(body['messages'][-1]['content'])}."
        yield fake


@pytest.fixture
def ollama(rows, monkeypatch):
    with FakeServer("tiny:latest", ollama=True) as fake:
        fake.say = lambda body: "Two dogs."
        monkeypatch.setenv("OLLAMA_HOST", fake.host)
        yield fake


def test_a_server_writes_the_answers(words, server, rows, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    ran = succeeds(*words(server.address))
    assert "lends no probabilities" in caplog.text and "--mode sequence" in caplog.text
    (answers,) = (tmp_path / "cache").glob("[!.]*")
    written = [json.loads(line) for line in (answers / "rows_train.jsonl").open()]
    given = {
        row["id"]: row["messages"] for row in map(json.loads, (rows / "train_train.jsonl").open())
    }
    for row in written:
        *asked, said = row["messages"]
        assert asked == given[row["id"]][:-1]
        assert said["content"] == f"It is {len(asked[-1]['content'])}."
    assert all(body["temperature"] == 0 and body["max_tokens"] == 256 for body in server.asked)
    facts = record(tmp_path)["metrics"]
    assert facts["teacher_address"] == server.address and facts["teacher_model"] == "tiny"
    assert facts["teacher_bytes"] == 4000 and facts["training_rows"] == len(written)
    assert f"{server.address}#tiny" in [one["path"] for one in record(tmp_path)["inputs"]]
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert f"taught by {server.address}#tiny" in card
    assert any(seen[2].get("Authorization") == f"Bearer {KEY}" for seen in server.seen)
    assert not any(KEY.encode() in content for content in files_under(tmp_path).values())
    assert KEY not in ran.err + ran.out + caplog.text


def test_finished_answers_need_no_server(words, asks, ollama, tmp_path, caplog, monkeypatch):
    asks(*words("ollama:tiny"))
    facts = answers_of(tmp_path)
    assert facts["teacher_model"] == "tiny:latest" and facts["teacher_fingerprint"] == "abc"
    assert facts["teacher_address"] == f"http://{ollama.host}"
    assert {path for _, path, _ in ollama.seen} == {"/api/version", "/api/tags", "/api/chat"}
    asked = len(ollama.asked)
    asks(*words("ollama:tiny", "--alpha", 0.3))
    assert len(ollama.asked) == asked
    entry = {"name": "tiny:latest", "digest": "def", "size": 1234}
    ollama.listing = Said(text=json.dumps({"models": [entry]}))
    said = refused(3, "another model", *words("ollama:tiny"))
    assert "fingerprint was abc, now def" in said[1] and "cache/answers-" in said[2]
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    asks(*words("ollama:tiny", "--learning-rate", "2e-3"))
    assert "its answers are cached already" in caplog.text
    refused(3, "not in Ollama's store", *words("ollama:tiny", "--answer-tokens", 9))


def test_every_answer_is_kept_and_none_is_asked_for_again(
    words, asks, server, tmp_path, caplog
) -> None:
    count, say = 0, server.say

    def then_breaks(body: dict) -> str:
        nonlocal count
        count += 1
        if count == 8:
            server.next += [Said(400, '{"error": {"message": "too long"}}')]
        return say(body)

    server.say = then_breaks
    said = refused(3, "too long", *words(server.address))
    assert said and len(kept(tmp_path)) == 8 and not (tmp_path / "out").exists()
    server.say = say
    server.asked.clear()
    asks(*words(server.address))
    found = answers_of(tmp_path)
    total = found["train_asked"] + found["validation_asked"]
    assert len(server.asked) == total - 8 + 3  # three of them twice
    assert "3 of its earlier answers" in caplog.text
    assert not list((tmp_path / "cache").glob("*.json*"))


def answers_of(tmp_path: Path) -> dict:
    """What the record of a teacher's answers says."""
    (answers,) = (tmp_path / "cache").glob("answers-*")
    return json.loads((answers / "run.json").read_text())["metrics"]


@pytest.mark.parametrize("what", ["answers", "bytes"])
def test_a_teacher_that_changes_is_named_and_refused(what, words, asks, server, tmp_path) -> None:
    stop_after(server, 6)
    refused(3, "too long", *words(server.address))
    before = kept(tmp_path)
    server.say = lambda body: f"It is {len(body['messages'][-1]['content'])}."
    if what == "answers":
        server.say = lambda body: "No."
    else:
        meta = {"n_params": 1000, "size": 7}
        server.listing = Said(text=json.dumps({"data": [{"id": "tiny", "meta": meta}]}))
    said = refused(3, "another model than the one that wrote", *words(server.address))
    assert ("now 'No.'" if what == "answers" else "fingerprint was") in said[1]
    assert "delete" in said[2] and kept(tmp_path) == before
    for file in (tmp_path / "cache").glob("answers-*.*"):
        file.unlink()  # the cure
    asks(*words(server.address))


def stop_after(server: FakeServer, answers: int) -> None:
    """From its answer number `answers` on the server takes no request."""
    say, count = server.say, 0

    def counted(body: dict) -> str:
        nonlocal count
        count += 1
        if count == answers:
            server.next.append(Said(400, '{"error": {"message": "too long"}}'))
        return say(body)

    server.say = counted


def test_a_teacher_that_changes_under_way(words, ollama, tmp_path) -> None:
    def then_pulled(body: dict) -> str:
        entry = {"name": "tiny:latest", "digest": "def", "size": 1234}
        ollama.listing = Said(text=json.dumps({"models": [entry]}))
        return "Two dogs."

    ollama.say = then_pulled
    said = refused(3, "another model", *words("ollama:tiny"))
    assert "fingerprint was abc, now def" in said[1]
    assert not list(tmp_path.glob("cache/answers-*/run.json"))


def test_a_teacher_that_hangs(words, server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server_client, "PATIENCE", 0.3)
    say, count = server.say, 0

    def then_hangs(body: dict) -> str:
        nonlocal count
        count += 1
        if count == 4:
            threading.Event().wait(1)
        return say(body)

    server.say = then_hangs
    said = refused(4, "silent for 0 s", *words(server.address))
    assert "the answers so far are kept" in said[2] and len(kept(tmp_path)) >= 3


@pytest.mark.parametrize("place", ["list", "answer"])
def test_a_server_that_takes_the_request_and_says_nothing(
    place, words, server, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(served_models, "_LISTED", 0.2)
    monkeypatch.setattr(server_client, "PATIENCE", 0.2)
    with Silence() as silence:
        if place == "list":
            server.listing = Said(silence=silence)
        else:
            server.next.append(Said(silence=silence))
        said = refused(4, "silent for 0 s", *words(server.address))
    assert "it hangs" in said[1] and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("cache/answers-*/run.json"))


@pytest.mark.parametrize("place", ["list", "answer"])
def test_a_web_page_in_place_of_an_answer(place, words, server, tmp_path) -> None:
    page = Said(text="<!DOCTYPE html><html><body>Sign in</body></html>", kind="text/html")
    if place == "list":
        server.listing = page
    else:
        server.next.append(page)
    said = refused(3, "a web page", *words(server.address))
    assert "/v1" in said[2] and not (tmp_path / "out").exists()


def test_no_other_host_than_the_one_that_was_named(words, server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    with FakeServer() as elsewhere:
        there = f"{elsewhere.address}/chat/completions"
        server.next.append(Said(307, headers={"Location": there}))
        refused(4, "sends us elsewhere", *words(server.address))
        assert not elsewhere.seen
    assert not any(KEY.encode() in content for content in files_under(tmp_path).values())


def test_a_key_that_the_server_says_again_is_kept_nowhere(
    words, asks, server, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    server.say = lambda body: f"Your key is {KEY}."
    ran = asks(*words(server.address))
    found = files_under(tmp_path)
    assert found and not any(KEY.encode() in content for content in found.values())
    assert KEY not in ran.out + ran.err


def test_without_ollama_the_file_of_its_store_teaches(
    words, asks, gguf, tmp_path, monkeypatch, caplog
) -> None:
    store = put_into_ollama(tmp_path / "store", "tiny:1", gguf)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    ran = asks(*words("ollama:tiny:1"))
    assert "no Ollama answers" in ran.err


@pytest.mark.parametrize(
    ("code", "teacher", "more", "said"),
    [
        (2, "#tiny", ("--mode", "cached"), "no teacher for --mode cached"),
        (2, "#tiny", ("--mode", "online"), "the address of a server"),
        (3, "#other", (), "no such model"),
        (2, "?key=1", (), "it holds more than a place"),
    ],
)
def test_what_a_server_cannot_teach(code, teacher, more, said, words, server, tmp_path) -> None:
    refused(code, said, *words(server.address + teacher, *more))
    assert not files_under(tmp_path) and not server.asked


def test_the_combined_run_names_what_can_teach_there(settings, server, tmp_path) -> None:
    flags = ("--teacher-model", server.address, "--output-dir", tmp_path / "all")
    said = refused(2, "sequence in the combined run", "train_pruned_distilled", *settings, *flags)
    assert ".gguf" in said[2] and not files_under(tmp_path)


def test_a_dry_run_finds_the_server_and_asks_it_nothing(words, server, tmp_path) -> None:
    ran = succeeds(*words(server.address, "--dry-run"))
    assert f"{server.address}#tiny, which writes answers" in ran.out
    assert not server.asked and not files_under(tmp_path)
