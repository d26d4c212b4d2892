"""Servers that answer, late, wrongly or not at all: what is sent, and how each fault is named."""

import json
import logging
from urllib.parse import urlsplit

import pytest
from fake_servers import EVENTS, LINES, FakeServer, Said, Silence, ollama_answer, openai_answer

from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.inference.decoding import Decoding
from slimtune.inference.json_requests import is_loopback
from slimtune.inference.server_address import API_KEY, Server
from slimtune.inference.server_client import ServerClient

ASKED = [{"role": "system", "content": "Briefly."}, {"role": "user", "content": "你好？"}]
GREEDY = Decoding(12, seed=7)
DRAWN = Decoding(12, temperature=0.7, top_k=40, top_p=0.9, min_p=0.1, repeat_penalty=1.1, seed=7)
KEY = "sk-secret-123"


def client_of(server: FakeServer, **settings) -> ServerClient:
    reference = f"ollama:{server.model}" if server.ollama else f"{server.address}#{server.model}"
    return ServerClient(Server.of(reference), **{"pauses": (0.0, 0.0), "patience": 60.0} | settings)


def answer(server: FakeServer, decoding: Decoding = GREEDY, **settings):
    with client_of(server, **settings) as client:
        return client.answer(ASKED, decoding)


def failure(kind: type[Exception], server: FakeServer, *said: Said, **settings) -> str:
    """The error with which an answer ends, whole."""
    server.next += said
    with pytest.raises(kind) as caught:
        answer(server, **settings)
    return str(caught.value)


@pytest.mark.parametrize("name", ["server", "ollama"])
def test_an_answer_comes_whole_with_what_the_server_counts(name, request):
    running = request.getfixturevalue(name)
    running.say = lambda body: "  今天\x1b[2J天气\n\n很好  "
    found = answer(running)
    assert (found.text, found.stopped) == ("今天[2J天气\n\n很好", True)
    assert found.tokens == found.writing[0] + 1 > 5


@pytest.mark.parametrize("name", ["server", "ollama"])
def test_an_answer_that_was_cut_says_so(name, request):
    running = request.getfixturevalue(name)
    said = ollama_answer if running.ollama else openai_answer
    running.next.append(said("half an ans", running.model, end="length"))
    assert not answer(running).stopped


def test_the_decoding_is_passed_outright(server):
    answer(server, DRAWN)
    (body,) = server.asked
    assert body["messages"] == ASKED and body["model"] == "tiny"
    told = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7}
    told |= {"max_tokens": 12, "repeat_penalty": 1.1, "repetition_penalty": 1.1}
    told |= {"repeat_last_n": 65536, "presence_penalty": 0, "frequency_penalty": 0}
    assert told.items() <= body.items()


def test_a_greedy_decoding_is_passed_outright_too(server):
    """Ollama's /v1 sets temperature and top_p to 1.0 where a client names none."""
    answer(server)
    told = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repeat_penalty": 1}
    assert told.items() <= server.asked[0].items()


def test_ollama_gets_every_part_by_its_own_api_and_may_cut_nothing(ollama):
    answer(ollama, DRAWN)
    assert ollama.seen[-1][:2] == ("POST", "/api/chat")
    (body,) = ollama.asked
    assert body["messages"] == ASKED and body["truncate"] is body["shift"] is False
    told = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7}
    told |= {"repeat_last_n": 65536, "presence_penalty": 0, "frequency_penalty": 0}
    assert body["options"] == told | {"num_predict": 12, "repeat_penalty": 1.1}


@pytest.mark.parametrize("name", ["server", "ollama"])
@pytest.mark.parametrize("decoding", [GREEDY, DRAWN])
def test_sampling_can_be_left_to_the_server(name, decoding, request):
    """Only the longest answer is said, and with what seed to draw where that is meant."""
    running = request.getfixturevalue(name)
    answer(running, decoding, own_sampling=True)
    (body,) = running.asked
    known = {"model", "messages", "stream", "stream_options", "truncate", "shift", "options"}
    told = {key: value for key, value in body.items() if key not in known}
    longest = {"num_predict" if running.ollama else "max_tokens": 12}
    drawn = {} if decoding.greedy else {"seed": 7}
    assert body.get("options", {}) | told == longest | drawn


def test_the_tokens_of_the_prompt_are_what_the_server_counts(server, ollama):
    whole = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    server.next.append(Said(text=json.dumps(whole | {"usage": {"prompt_tokens": 29}})))
    line = {"message": {"content": "Hi"}, "done": True, "prompt_eval_count": 29}
    ollama.next.append(Said(text=json.dumps(line), kind=LINES))
    assert answer(server).prompt_tokens == answer(ollama).prompt_tokens == 29
    assert answer(ollama).prompt_tokens is None


def test_a_server_that_streams_nothing_answers_at_once(server):
    whole = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    server.next.append(Said(text=json.dumps(whole | {"usage": {"completion_tokens": 3}})))
    found = answer(server)
    assert (found.text, found.tokens, found.writing[1]) == ("Hi", 3, 0.0)


def test_a_server_that_counts_nothing(server):
    event = {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    server.next.append(Said(text=f"data: {json.dumps(event)}\n\n", kind=EVENTS))
    assert answer(server).tokens is None


def test_a_chat_hears_it_grow(server):
    with client_of(server) as client:
        pieces = list(client.stream(ASKED, GREEDY))
    assert "".join(pieces) == "Hello there" and len(pieces) > 5


BUSY = [Said(429, '{"error": {"message": "slow down"}}'), Said(503, "Loading model"), Said(500)]


@pytest.mark.parametrize("said", BUSY, ids=lambda one: str(one.status))
def test_what_passes_is_asked_again(said, server, caplog):
    caplog.set_level(logging.INFO, "slimtune")
    server.next += [said, said]
    assert answer(server).text == "Hello there"
    assert len(server.asked) == 3 and "again in 0 s" in caplog.text


@pytest.mark.parametrize("said", BUSY, ids=lambda one: str(one.status))
def test_what_does_not_pass_is_told(said, server):
    error = failure(ResourceError, server, *[said] * 3)
    assert f"{server.address}#tiny: status {said.status}" in error and "are kept" in error
    assert len(server.asked) == 3


def test_it_waits_as_long_as_the_server_asks(server, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("slimtune.inference.server_client.time.sleep", slept.append)
    late = [Said(429, headers={"Retry-After": "7"}), Said(429, headers={"Retry-After": "9999"})]
    server.next += late
    answer(server, pauses=(1.0, 2.0))
    assert [pause for pause in slept if pause] == [7.0, 60.0]


def test_a_connection_that_breaks_is_asked_again(server):
    server.next.append(Said(text="data: {", kind=EVENTS, broken=True))
    assert answer(server).text == "Hello there"


def test_nobody_there():
    nobody = Server.of("http://127.0.0.1:9/v1#tiny")
    with ServerClient(nobody, pauses=()) as client, pytest.raises(ResourceError) as caught:
        client.answer(ASKED, GREEDY)
    assert "http://127.0.0.1:9/v1#tiny: no connection" in str(caught.value)
    assert "start the server" in caught.value.cure


def test_a_server_that_is_silent_is_not_asked_again(server):
    with Silence() as silence:
        error = failure(ResourceError, server, Said(silence=silence), patience=0.2)
        assert silence.begun.wait(60)
    assert "silent for 0 s" in error and len(server.asked) == 1


def stream(*events: dict, end: str = "") -> Said:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return Said(kind=EVENTS, text="".join(lines) + end)


WORD = {"choices": [{"delta": {"content": "Hel"}}]}
NONSENSE = {
    "a page": (Said(text="<!DOCTYPE html><title>Login</title>", kind="text/html"), "a web page"),
    "a page as JSON": (Said(text="<html>"), "a web page"),
    "no JSON": (Said(text="OK"), "no JSON object: 'OK'"),
    "a list": (Said(text="[]"), "no JSON object"),
    "deep": (Said(text="[" * 100_000), "no JSON object"),
    "an error": (Said(text='{"error": {"message": "out of VRAM"}}'), "out of VRAM"),
    "an error in words": (Said(text='{"error": "model requires more memory"}'), "more memory"),
    "an error amid": (stream(WORD, {"error": {"message": "slot died"}}), "slot died"),
    "no choices": (Said(text='{"choices": null}'), "no list of choices"),
    "an empty choice": (stream({"choices": [{}]}), "a choice without a message"),
    "a choice of none": (Said(text='{"choices": ["x"]}'), "a choice without a message"),
    "no text": (Said(text='{"choices": [{"message": {}}]}'), "a choice without text"),
    "a number": (stream({"choices": [{"delta": {"content": 7}}]}), "a choice without text"),
    "half an event": (Said(text='data: {"choices": [{"del\n\n', kind=EVENTS), "no JSON object"),
}


@pytest.mark.parametrize(("said", "words"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_named_and_not_asked_again(said, words, server):
    error = failure(InputError, server, said)
    assert words in error and f"{server.address}#tiny: " in error
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "said",
    [stream(WORD), stream(WORD, end="data: [DONE]\n\n"), Said(text='{"choices": []}'), Said()],
)
def test_an_answer_without_an_end_is_asked_again_and_then_told(said, server):
    assert "broke off" in failure(ResourceError, server, *[said] * 3)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(text="{}\n", kind=LINES), "no message with text"),
        (
            Said(text='{"message": {"content": "a"}}\n{"error": "it crashed"}\n', kind=LINES),
            "it crashed",
        ),
        (
            Said(text='{"message": {"content": 1}, "done": true}\n', kind=LINES),
            "no message with text",
        ),
    ],
)
def test_ollamas_nonsense_is_named(said, words, ollama):
    error = failure(InputError, ollama, said)
    assert words in error and f"ollama:llama3.2:latest (http://{ollama.host})" in error


def test_another_model_than_asked(server):
    error = failure(InputError, server, openai_answer("Hi", "gpt-99"))
    assert "another model answered: gpt-99" in error and "tiny was asked" in error
    server.next.append(openai_answer("Hi", "tiny-2024-08-06"))
    assert answer(server).text == "Hi"
    assert "tiny-vision" in failure(InputError, server, openai_answer("Hi", "tiny-vision"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_refused(status, server):
    with FakeServer() as elsewhere:
        there = Said(status, headers={"Location": f"{elsewhere.address}/chat/completions"})
        error = failure(ResourceError, server, there)
        assert f"elsewhere (status {status})" in error and elsewhere.address in error
        assert elsewhere.seen == []


def test_no_proxy_leads_to_this_machine(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert answer(server).text == "Hello there"


def test_a_proxy_leads_to_others(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{server.host}")
    with ServerClient(Server.of("http://models.example/v1#tiny"), pauses=()) as client:
        assert client.answer(ASKED, GREEDY).text == "Hello there"
    assert server.seen[0][1] == "http://models.example/v1/chat/completions"


def test_the_key_is_sent_and_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv(API_KEY, f" {KEY}\n")
    server.say = lambda body: f"your key is {KEY}."
    assert answer(server).text == "your key is ***."
    with client_of(server) as client:
        assert "".join(client.stream(ASKED, GREEDY)) == "your key is ***."
    assert server.seen[0][2]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(Server.of(server.address))
    error = failure(ResourceError, server, Said(401, f'{{"error": "wrong key {KEY}"}}'))
    assert "wants a key (status 401)" in error and f"export {API_KEY}=" in error
    assert KEY not in error and "***" in error
    failure(ResourceError, server, *[Said(500, KEY)] * 3)
    assert KEY not in caplog.text


def test_ollama_gets_no_key(ollama, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    answer(ollama)
    assert "Authorization" not in ollama.seen[0][2]


@pytest.mark.parametrize("key", ["schlüssel", "a\nb"])
def test_a_key_that_no_request_can_carry(key, monkeypatch):
    monkeypatch.setenv(API_KEY, key)
    with pytest.raises(ResourceError) as caught:
        Server.of("http://box/v1#m")
    assert key not in str(caught.value)


def test_what_a_server_does_not_take_is_left_out_where_it_changes_nothing(server, caplog):
    server.next += [
        Said(400, '{"error": {"message": "Unrecognized request argument supplied: top_k"}}'),
        Said(422, '{"detail": [{"loc": ["body", "repetition_penalty"], "msg": "extra"}]}'),
    ]
    with client_of(server) as client:
        assert client.answer(ASKED, GREEDY).text == client.answer(ASKED, GREEDY).text
    assert "top_k" in caplog.text and "repetition_penalty" in caplog.text
    assert len(server.asked) == 4
    for body in server.asked[2:]:
        assert "top_k" not in body and "repetition_penalty" not in body
        assert body["repeat_penalty"] == 1 and body["temperature"] == 0


def test_what_a_server_does_not_take_ends_the_run_where_it_counts(server):
    server.next.append(Said(400, '{"error": {"message": "unknown argument: top_k"}}'))
    with pytest.raises(InputError, match="does not take the request"):
        answer(server, DRAWN)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (Said(400, '{"error": {"message": "exceeds the context"}}'), InputError, "context"),
        (Said(404, '{"error": {"message": "model not found"}}'), InputError, "not there"),
        (Said(413), InputError, "it gives no reason"),
        (Said(403, "<html>Forbidden"), ResourceError, "a web page"),
    ],
    ids=lambda one: str(getattr(one, "status", "")),
)
def test_other_refusals(said, kind, words, server):
    assert words in failure(kind, server, said)


def test_what_a_server_says_is_one_short_line_without_control_characters(server):
    error = failure(InputError, server, Said(400, "\x1b[2J" + "bad\n" * 1000))
    assert "\x1b" not in error and len(error) < 800 and error.count("\n") == 2


def test_an_endless_answer_ends(server, monkeypatch):
    for module in ("server_client", "json_requests"):
        monkeypatch.setattr(f"slimtune.inference.{module}.MOST", 1000)
    for said in (stream(*[WORD] * 100), Said(text="x" * 2000), Said(500, "x" * 2000)):
        assert "no answer" in failure(InputError, server, said)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("http://", "names no host"),
        ("http://box:port/v1", "port"),
        ("http://[::1/v1", "IPv6"),
        ("http://me:secret@box/v1#m", API_KEY),
        ("http://box/v1?key=secret#m", API_KEY),
        ("http://me:secret@box:port/v1", "box:port"),
        ("http://box/v1 x#m", "blank"),
    ],
)
def test_what_is_no_address(reference, words):
    with pytest.raises(SettingsError, match="no address of a server") as caught:
        Server.of(reference)
    assert words in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "label", "loopback"),
    [
        ("http://127.0.0.1:8080/v1#tiny", "tiny@127.0.0.1:8080", True),
        ("http://localhost:1/v1#a/b.gguf", "b@localhost:1", True),
        ("http://[::1]:8080/v1/#m", "m@[::1]:8080", True),
        ("https://models.example/v1#org/name", "name@models.example", False),
        ("http://localhost.example/v1#m", "m@localhost.example", False),
        ("http://192.168.1.5:8000/v1#m", "m@192.168.1.5:8000", False),
        ("ollama:hf.co/me/tuned:Q4", "tuned:Q4@ollama", True),
    ],
)
def test_a_column_is_named_after_model_and_server(reference, label, loopback, monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    server = Server.of(reference)
    assert (server.label, is_loopback(urlsplit(server.base).hostname)) == (label, loopback)
    assert Server.of(server.reference) == server
