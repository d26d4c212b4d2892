"""What is seen on a terminal of 80 columns: nothing is broken but by us, in either language.

A line that is wider is broken by the terminal, inside a word. Only what is to be pasted may be: a
command, a path.
"""

import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from terminals import screen

from slimtune.config import SCRIPTS

LANGUAGES = ["en", "zh"]
MAY_NOT_BEGIN = "，。、；：？！）》」』】”’"
PASTED = re.compile(r"(?:python|ollama|pip|hf|accelerate) \S|^(?:wrote|would write)  /|^\S*/\S*: ")
LLAMA_FACTORY = """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
stage: sft
dataset: identity,alpaca_en_demo
template: qwen
save_steps: 500
learning_rate: 1.0e-4
"""


def look_at(lines: list[str]) -> str:
    """All that is seen, once every line of it has been looked at."""
    for line in (one.removeprefix("> ") for one in lines):
        longest = max(map(cell_len, line.split()), default=0)
        pasted = PASTED.search(line) or longest > 60  # a path
        assert cell_len(line) <= 80 or pasted, line
        assert not line or line.lstrip()[0] not in MAY_NOT_BEGIN, line
    return "\n".join(lines)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, language: str) -> None:
    seen = look_at(screen(script, "--help", "--language", language))
    assert f"{script}.py" in seen and "--dry-run" in seen


def test_mistakes_in_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(LLAMA_FACTORY, encoding="utf-8")
    words = ("--max_steps", 5, "--packing", "--batch-size", 0, "--prompt-template", "qwen")
    seen = look_at(screen("train_lora", "--config", file, *words))
    assert "6 settings stand in no section" in seen and "--packing: unknown flag" in seen
    seen = look_at(screen("knowledge_distillation", "--quantised-student", "Q9"))
    assert "the types are F32" in seen


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = look_at(screen("prepare_data", "--input", "mine.json"))
    assert "mine.json" in seen and "exit code 3" in seen
    seen = look_at(screen("evaluate_model", "--base-model", "./no_model", "--lora-model", "null"))
    assert "exit code 3" in seen


@pytest.mark.parametrize("language", LANGUAGES)
def test_preparing(settings, tmp_path: Path, language: str) -> None:
    words = ("--output-dir", tmp_path / "rows", "--language", language)
    assert "rejected.jsonl" in look_at(screen("prepare_data", *settings, *words))


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_and_what_it_would_take(settings, rows, tmp_path: Path, language: str) -> None:
    words = (*settings, "--output-dir", tmp_path / "out", "--language", language, "--epochs", 1)
    assert "dry run" in look_at(screen("train_lora", *words, "--dry-run"))
    seen = look_at(screen("train_lora", *words))
    assert "tokens/s" in seen and "\nwrote  " in seen
    assert "exists already" in look_at(screen("train_lora", *words))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_comparison(settings, adapter, merged, tmp_path: Path, language: str) -> None:
    output = ("--output", tmp_path / "results.csv", "--language", language)
    seen = look_at(screen("evaluate_model", *settings, *output, "--models", merged))
    assert "%" in seen and "report.html" in seen


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_chat(settings, adapter, language: str) -> None:
    typed = "/help\n/both\n你好，请问 1 + 2 是多少？\n/set temperature 0.7\n/exit\n"
    words = (*settings, "--interactive", "--language", language)
    seen = look_at(screen("evaluate_model", *words, typed=typed))
    assert " │ " in seen and "/model" in seen


@pytest.mark.parametrize("language", LANGUAGES)
def test_pruning_and_converting(settings, merged, tmp_path: Path, language: str) -> None:
    words = (*settings, "--language", language, "--output-dir")
    assert "before" in look_at(screen("model_pruning", *words, tmp_path / "pruned"))
    seen = look_at(screen("convert_to_gguf", *words, tmp_path / "gguf", "--verify", "off"))
    assert "\nwrote  " in seen and "fallbacks" in seen
    assert "dry run" in look_at(screen("convert_to_gguf", *words, tmp_path / "g", "--dry-run"))
