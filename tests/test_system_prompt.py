"""A system prompt that all training rows share goes wherever the model goes, without being told."""

import json
from pathlib import Path

import pytest
from running import succeeds
from tiny_rows import raw_rows

from slimtune.artifacts import run_of, system_prompt_for
from slimtune.config import Config
from slimtune.data.rows import shared_system, written_system
from slimtune.evaluation import candidates

SAID = "Be brief, 用中文."


@pytest.fixture(scope="module")
def briefed(settings, tmp_path_factory) -> Path:
    """Rows prepared under a system prompt, and an adapter that was trained on them."""
    folder = tmp_path_factory.mktemp("briefed")
    rows = ("--output-dir", folder / "rows", "--system-prompt", SAID)
    succeeds("prepare_data", *settings, *rows)
    train = ("--train-data", folder / "rows/train_train.jsonl", "--output-dir", folder / "tuned")
    succeeds("train_lora", *settings, *train, "--epochs", 1)
    return folder


def test_it_is_recorded_with_the_rows_and_with_what_was_trained(briefed) -> None:
    assert written_system(briefed / "rows/train_train.jsonl") == SAID
    for made in (briefed / "rows/train_train.jsonl", briefed / "tuned/lora_adapter"):
        assert run_of(made)["metrics"]["system_prompt"] == SAID
        assert system_prompt_for(Config(), made) == SAID


def test_what_was_trained_last_counts_and_what_is_said_counts_more(briefed, adapter) -> None:
    """The tiny project's own adapter learned rows without one: that is known, too."""
    assert run_of(adapter)["metrics"]["system_prompt"] == ""
    assert system_prompt_for(Config(), adapter, briefed / "tuned/lora_adapter") == ""
    for said in ("", "Be long."):
        config = Config(model={"system_prompt": said})
        assert system_prompt_for(config, briefed / "tuned/lora_adapter") == said


def test_it_is_the_system_of_the_modelfile(briefed, project, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("convert_to_gguf", "--model-path", project / "base", "--lora-model")
    words += (briefed / "tuned/lora_adapter", "--output-dir", "out", "--quantization", "F16")
    words += ("--create-modelfile", "--verify", "off")
    succeeds(*words)
    assert f'SYSTEM "{SAID}"\n' in (tmp_path / "Modelfile").read_text(encoding="utf-8")
    succeeds(*words, "--overwrite", "--system-prompt", "")
    assert "SYSTEM" not in (tmp_path / "Modelfile").read_text(encoding="utf-8").split('"""')[-1]


def test_the_chat_starts_with_it(briefed, settings, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--interactive", "--lora-model", briefed / "tuned/lora_adapter")
    succeeds("evaluate_model", *settings, *words, stdin="Hi\n/save talk.jsonl\n/exit\n")
    saved = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert saved["messages"][0] == {"role": "system", "content": SAID}


def test_test_rows_without_one_are_asked_under_it(briefed, tmp_path) -> None:
    file = tmp_path / "foreign.jsonl"
    file.write_text("\n".join(map(json.dumps, raw_rows(1))), encoding="utf-8")
    adapter = briefed / "tuned/lora_adapter"
    chosen = {"lora_model": adapter, "test_data": file}
    rows, _ = candidates.test_rows(Config(evaluation=chosen))
    assert {row["messages"][0]["content"] for row in rows} == {SAID}
    own, _ = candidates.test_rows(
        Config(evaluation=chosen | {"test_data": briefed / "rows/train_test.jsonl"})
    )
    assert all([m["role"] for m in row["messages"]].count("system") == 1 for row in own)


@pytest.mark.parametrize(
    ("opened", "shared"),
    [(["a", "a"], "a"), (["a", "b"], ""), (["a", None], ""), ([None, "a"], ""), ([], "")],
)
def test_only_what_every_row_opens_with_is_shared(opened, shared) -> None:
    rows = []
    for system in opened:
        first = [{"role": "system", "content": system}] if system else []
        rows.append({"messages": [*first, {"role": "user", "content": "x"}]})
    assert shared_system(rows) == shared
