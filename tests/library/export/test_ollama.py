"""The handover to Ollama: an `ollama` that records what it was told, and a server that answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_ollama import AsOllamaDoes, FakeOllama, install, running, said
from fake_servers import Silence
from peft import LoraConfig, get_peft_model
from running import files_under, refused, succeeds
from tiny_folders import write_tiny_llama
from transformers import AutoModelForCausalLM

from slimtune import prompts
from slimtune.errors import ResourceError
from slimtune.export import ollama, ollama_answers
from slimtune.export.proof.serving import Difference
from slimtune.inference.decoding import Decoding
from slimtune.inference.server_address import Server
from slimtune.inference.server_client import ServerClient

SYSTEM = {"role": "system", "content": "Be brief."}
CAT = {"role": "user", "content": "The cat?"}
TURNS = [
    {"role": "user", "content": "今天天气？"},
    {"role": "assistant", "content": "很好。"},
    {"role": "user", "content": "And 12 dogs?"},
]


@pytest.fixture
def server(monkeypatch):
    with running(monkeypatch) as handler:
        yield handler


@pytest.fixture
def words(taught_llama, tmp_path, monkeypatch) -> list[object]:
    """Nine rows, of which eight are asked: a question, two turns, and seven more questions."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "config.yaml").write_text("gguf: {model_name: tiny, quantization: F16}\n")
    answer = {"role": "assistant", "content": "Sat."}
    more = [[{"role": "user", "content": f"area({n})?"}] for n in range(7)]
    rows = [
        json.dumps({"messages": [*asked, answer]}, ensure_ascii=False)
        for asked in ([CAT], TURNS, *more)
    ]
    (work / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = ["--config", "config.yaml", "--model-path", taught_llama, "--output-dir", "out"]
    return [*words, "--test-data", "rows.jsonl", "--system-prompt", "Be brief.", "--ollama-create"]


@pytest.fixture
def created(server, tmp_path, monkeypatch) -> Iterator[type[FakeOllama]]:
    """An Ollama that takes the model and answers as the real one does."""
    install(tmp_path, monkeypatch)
    with AsOllamaDoes(tmp_path, tmp_path / "work", prompts.template("llama2")) as answers:
        server.chat = staticmethod(answers)
        yield server


def test_the_model_is_created_and_asked_eight_rows(words, created, tmp_path, caplog) -> None:
    ran = succeeds("convert_to_gguf", *words)
    arguments, folder = json.loads((tmp_path / "told.json").read_text())
    assert arguments == ["create", "tiny", "-f", "Modelfile"]
    assert Path(folder) == tmp_path / "work"
    assert (tmp_path / "Modelfile.seen").read_text().startswith('FROM "./out/tiny-F16.gguf"\n')
    assert len(created.asked) == 8
    for asked in created.asked:
        assert (asked["path"], asked["model"]) == ("/api/chat", "tiny")
        assert list(asked["options"]) == ["num_predict"]  # sampling is the Modelfile's
    assert [asked["messages"] for asked in created.asked[:2]] == [[CAT], TURNS]
    assert "ollama 0.33.0: 8 of 8 answers equal\n" in ran.out
    assert ran.out.endswith("next:  ollama run tiny\n")
    assert "row " not in caplog.text


def test_the_files_are_called_after_the_last_part_of_a_name(words, created, tmp_path) -> None:
    ran = succeeds("convert_to_gguf", *words, "--model-name", "me/tiny:v1.2", "--verify", "off")
    assert json.loads((tmp_path / "told.json").read_text())[0][1] == "me/tiny:v1.2"
    assert (tmp_path / "Modelfile.seen").read_text().startswith('FROM "./out/tiny-v1.2-F16.gguf"')
    assert "8 of 8 answers equal" in ran.out  # asked, though nothing else is proven
    assert ran.out.endswith("next:  ollama run me/tiny:v1.2\n")


def test_an_adapter_is_created_with_its_base(words, created, tmp_path, taught_llama) -> None:
    """--ollama-create had no effect there; a base alone would answer otherwise."""
    model = AutoModelForCausalLM.from_pretrained(taught_llama, dtype=torch.float32)
    torch.manual_seed(4)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained("adapter")
    words += ["--lora-model", "adapter", "--lora-as", "adapter", "--verify", "off"]
    ran = succeeds("convert_to_gguf", *words)
    text = (tmp_path / "Modelfile.seen").read_text(encoding="utf-8")
    assert 'ADAPTER "./out/tiny-lora-F16.gguf"' in text
    assert "ollama 0.33.0: 8 of 8 answers equal\n" in ran.out
    assert ran.out.endswith("next:  ollama run tiny\n")


def test_the_first_answer_that_differs_is_told_with_its_cause(
    words, created, tmp_path, caplog
) -> None:
    """Ollama goes by temperature 0.8, and the Modelfile says 0."""
    answers = created.chat

    def chat(body: dict) -> dict:
        lines = (tmp_path / "Modelfile.seen").read_text().splitlines()
        kept = [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER")]
        created.parameters = "\n".join(kept).replace("temperature 0", "temperature    0.8")
        return said("The dogs ran.", None) if len(created.asked) in (3, 5) else answers(body)

    created.chat = staticmethod(chat)
    ran = succeeds("convert_to_gguf", *words, "--verify", "off")
    assert "ollama 0.33.0: 6 of 8 answers equal\n" in ran.out
    assert "row 3, 'area(0)?': expected " in caplog.text and "row 5" not in caplog.text
    assert "served 'The dogs ran.'" in caplog.text
    assert "the parameters: temperature is 0.8, not 0.0 (`ollama show" in caplog.text


MODELFILE = (
    'FROM "./m.gguf"\nPARAMETER stop "</s>"\nPARAMETER num_ctx 256\nPARAMETER temperature 0\n'
)
KEPT = 'num_ctx                        256\nstop                           "</s>"\n'


@pytest.mark.parametrize(
    ("served_tokens", "kept", "cause"),
    [
        (9, KEPT, "the template: compare `ollama show --template tiny`"),
        (3, KEPT + "temperature    0.8", "the parameters: temperature is 0.8, not 0.0"),
        (3, KEPT, "the parameters: temperature is unset, not 0.0"),
        (3, KEPT + "temperature    0", "the version: "),
        (None, KEPT + "temperature    0.0", "the version: "),
        (3, "", "the version: "),  # an Ollama that does not tell
    ],
)
def test_what_can_be_the_cause(served_tokens, kept, cause, server) -> None:
    server.parameters = kept
    difference = Difference(1, "Q?", "a", "b", 3, served_tokens)
    with ServerClient(Server.of("ollama:tiny"), pauses=()) as client:
        assert ollama_answers._cause(difference, MODELFILE, client).startswith(cause)


def test_a_name_that_ollama_refuses_is_told_before_the_work(words, tmp_path) -> None:
    words = [*words[:-1], "--model-name", "客服"]
    for flags in (["--create-modelfile"], ["--create-modelfile", "--dry-run"], ["--ollama-create"]):
        refused(2, "no name that Ollama takes", "convert_to_gguf", *words, *flags)
    assert not (tmp_path / "work/out").exists()
    succeeds("convert_to_gguf", *words)  # without Ollama, a file may be called so
    assert (tmp_path / "work/out/客服-F16.gguf").is_file()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_without_a_running_ollama_nothing_is_begun(dry, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    error = refused_without_work(words, tmp_path, dry, monkeypatch, program=False)
    assert "no ollama on PATH" in error
    error = refused_without_work(words, tmp_path, dry, monkeypatch, program=True)
    assert "no Ollama answers at http://127.0.0.1:9" in error and "`ollama serve`" in error


def refused_without_work(words, tmp_path, dry, monkeypatch, *, program: bool) -> str:
    if program:
        install(tmp_path, monkeypatch)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(4, "", "convert_to_gguf", *words, *dry)
    assert not (tmp_path / "work/out").exists()
    return "\n".join(error)


def test_an_adapter_is_refused_where_ollama_takes_none(
    words, server, tmp_path, monkeypatch
) -> None:
    """The adapter itself is not looked at before that: any folder will do."""
    install(tmp_path, monkeypatch)
    words += ["--lora-as", "adapter", "--lora-model", tmp_path]
    server.version = "0.34.1"
    error = refused(4, "Ollama 0.34.1 takes no adapter", "convert_to_gguf", *words)
    assert "--lora-as merged" in error[2]
    for version in ("0.34.0", "0.9.6", "0.0.0-dev"):
        server.version = version
        assert "takes no adapter" not in "".join(refused(3, "", "convert_to_gguf", *words))


def test_ollama_that_fails_says_why_and_the_files_stay(
    words, server, tmp_path, monkeypatch
) -> None:
    install(tmp_path, monkeypatch, code=1)
    error = refused(4, "could not connect to ollama server", "convert_to_gguf", *words)
    assert "`ollama create tiny -f Modelfile` ended with exit code 1" in error[0]
    assert {"Modelfile", "out/tiny-F16.gguf"} <= set(files_under(tmp_path / "work"))


def ask(patience: float = 5.0) -> object:
    server = Server.of("ollama:tiny")
    with ServerClient(server, patience=patience, pauses=(), own_sampling=True) as client:
        return ollama_answers._reply(client, [CAT], Decoding(max_new_tokens=4))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({}, "status 500"),
        ({"error": "model runner has stopped"}, "model runner has stopped"),
        ({"message": {"role": "assistant"}, "done": True}, "no message with text"),
        ({"message": {"content": None}, "done": True}, "no message with text"),
    ],
)
def test_a_server_that_does_not_answer(reply, why, server) -> None:
    server.chat = staticmethod(lambda body: reply)
    with pytest.raises(ResourceError, match="Ollama created tiny and does not answer") as caught:
        ask()
    assert why in caught.value.why


def test_a_server_that_answers_late(server, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ollama, "_HELLO_SECONDS", 0.1)
    install(tmp_path, monkeypatch)
    with Silence() as server.silence:
        with pytest.raises(ResourceError, match="does not answer") as caught:
            ask(patience=0.1)
        assert "silent for 0 s" in caught.value.why
        refused(4, "no Ollama answers at http://127.0.0.1", "convert_to_gguf", *words)


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
