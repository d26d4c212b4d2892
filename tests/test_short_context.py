"""Every stage keeps to the positions its model has learned: lowered by default, else refused."""

import json
import shutil
from pathlib import Path

import pytest
from running import refused, run, succeeds

POSITIONS = 100


def shortened(model: Path, folder: Path) -> Path:
    """A copy of a model that says it follows POSITIONS tokens."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("run.json"))
    about = json.loads((folder / "config.json").read_text())
    about["max_position_embeddings"] = POSITIONS
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def base(project, tmp_path_factory) -> Path:
    return shortened(project / "base", tmp_path_factory.mktemp("short") / "base")


def stages(base: Path, rows: Path, out: Path) -> dict[str, list]:
    """Each stage that counts tokens, on `base`, without the length that is in question."""
    model = ("--base-model", base)
    teacher = ("--teacher-model", base, "--student-model", base, "--cache-dir", out / "cache")
    return {
        "prepare_data": [*model, "--output-dir", out / "rows"],
        "train_lora": [*model, "--output-dir", out / "tuned", "--dry-run"],
        "knowledge_distillation": [*teacher, "--output-dir", out / "student", "--dry-run"],
        "train_pruned_distilled": [*model, *teacher[:2], "--output-dir", out / "all", "--dry-run"],
        "evaluate_model": [*model, "--lora-model", "null", "--output", out / "r.csv", "--dry-run"],
        "model_pruning": ["--model-path", base, "--output-dir", out / "pruned", "--dry-run"],
    }


@pytest.mark.parametrize("script", stages(Path(), Path(), Path()))
def test_a_length_beyond_the_model_is_refused(script, settings, base, rows, tmp_path) -> None:
    words = stages(base, rows, tmp_path)[script]
    length = "--calibration-length" if script == "model_pruning" else "--max-length"
    error = refused(2, f"follows {POSITIONS} tokens", script, *settings, *words, length, 101)
    assert f"set {length} to {POSITIONS}" in error[2]
    ran = run(script, *settings, *words, length, 99)
    assert "follows" not in ran.err


def test_the_default_is_lowered_and_recorded(settings, base, rows, tmp_path, caplog) -> None:
    words = ("--base-model", base, "--max-length", 512, "--max-truncated-share", 1)
    words += ("--epochs", 0.2, "--output-dir", tmp_path)
    succeeds("train_lora", *settings, *words)
    record = json.loads((tmp_path / "lora_adapter/run.json").read_text())
    assert record["settings"]["training"]["max_length"] == POSITIONS
    assert f"caution: --max-length is {POSITIONS} here in place of 512" in caplog.text
