"""Tokens and passwords in command lines, settings and errors: none stands in what a run leaves."""

import logging
import sys
from pathlib import Path

import pytest
from running import files_under, run, succeeds

from slimtune.artifacts.files import write_page
from slimtune.artifacts.records import command
from slimtune.console import note, start_logging
from slimtune.errors import InputError
from slimtune.machine.locks import only_writer
from slimtune.masking import masked, masked_in
from slimtune.script import _run

pytestmark = pytest.mark.faults

RANDOM = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7"
SECRETS = {
    f"hf_{RANDOM}": "hf_***",
    f"--token=hf_{RANDOM}": "--token=hf_***",
    f"sk-{RANDOM}": "sk-***",
    f"sk-proj-{RANDOM}-x": "sk-***",
    f"ghp_{RANDOM}": "ghp_***",
    f"github_pat_11AA_{RANDOM}": "github_pat_***",
    f"glpat-{RANDOM}": "glpat-***",
    "AKIAIOSFODNN7EXAMPLE": "AKIA***",
    f"Authorization: Bearer {RANDOM}": "Authorization: Bearer ***",
    "https://user:s3cret!@host:80/v1": "https://***@host:80/v1",
    "/home/me/https:/user:s3cret@host/v1": "/home/me/https:/***@host/v1",
    "postgresql://user:s3cret@db/x": "postgresql://***@db/x",
    f"https://host/v1?api_key={RANDOM}&n=1": "https://host/v1?api_key=***&n=1",
}
ORDINARY = [
    "models/hf_clone",
    "sk-learn-based-classification",
    "the Bearer of news",
    "task-1234567890123456789",
    "http://localhost:8080/v1#model@1",
    "C:/Users/a@b/data",
    "ollama:llama3@sha256",
    "AKIA",
    "eos_token=</s>",
    "a@b.org",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked_and_what_it_is_stays(secret) -> None:
    assert masked(secret) == SECRETS[secret]
    assert masked(f"x '{secret}', y\n") == f"x '{SECRETS[secret]}', y\n"
    assert masked(masked(secret)) == masked(secret)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_words_stay(text) -> None:
    assert masked(text) == text


def test_a_key_of_the_environment_is_masked_whatever_it_looks_like(monkeypatch) -> None:
    monkeypatch.setenv("SLIMTUNE_API_KEY", "correct horse")
    assert masked("refused: correct horse") == "refused: ***"
    monkeypatch.setenv("SLIMTUNE_API_KEY", "none")
    assert masked("none of them") == "none of them"


def test_values_of_json_are_masked_throughout() -> None:
    token = f"hf_{RANDOM}"
    assert masked_in({token: [token, {"a": (token, 1, None)}]}) == {
        token: ["hf_***", {"a": ["hf_***", 1, None]}]
    }


def test_every_way_out_masks(tmp_path, monkeypatch, capsys) -> None:
    token = f"hf_{RANDOM}"
    monkeypatch.setattr(sys, "argv", ["/x/train_lora.py", f"--base-model={token}", token])
    assert command() == ["train_lora.py", "--base-model=hf_***", "hf_***"]
    with only_writer(tmp_path / "out", since="now", command=" ".join(command())):
        assert RANDOM not in (tmp_path / ".out.holder.lock").read_text(encoding="utf-8")
    write_page(tmp_path / "README.md", f"made from https://me:{RANDOM}@host/x")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "made from https://***@host/x"
    note(token)
    assert RANDOM not in str(InputError(token, token, token))
    monkeypatch.setattr(sys.stderr, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    logger = logging.getLogger("slimtune")
    before = logger.handlers, logger.propagate, logger.level
    start_logging()
    logger.warning("caution: %s", token)
    logger.handlers, logger.propagate, logger.level = before

    def main(_: object) -> None:
        raise ValueError(f"404 for https://user:{RANDOM}@host")

    main.__code__ = main.__code__.replace(co_filename="/x/train_lora.py")
    monkeypatch.setattr("slimtune.script.leave_out_unused", lambda config: None)
    assert _run(main, "", ["--debug"]) == 1
    said = capsys.readouterr()
    assert "Traceback" in said.err and "hf_***" in said.err and "https://***@host" in said.err
    assert RANDOM not in said.err + said.out


def test_a_run_leaves_no_secret(settings, project: Path, tmp_path) -> None:
    token = f"hf_{RANDOM}"
    raw = tmp_path / token / "raw.json"
    raw.parent.mkdir()
    raw.write_bytes((project / "raw.json").read_bytes())
    words = ("--input", raw, "--output-dir", tmp_path / "out")
    ran = succeeds("prepare_data", *settings, *words)
    printed = run("prepare_data", *settings, *words, "--print-config")
    refused = run("prepare_data", *settings, "--input", tmp_path / token / "none.json")
    assert "hf_***" in printed.out and "hf_***" in refused.err
    for text in (ran.out, ran.err, printed.out, printed.err, refused.err):
        assert RANDOM not in text
    for name, content in files_under(tmp_path / "out").items():
        assert RANDOM.encode() not in content, name
