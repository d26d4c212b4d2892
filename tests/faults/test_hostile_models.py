"""Model folders from strangers whose numbers would be planned and built: exit 3 before that."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from running import refused

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("in_process")]


def changed(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | values), encoding="utf-8")


@pytest.fixture
def model(project: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(project / "base", tmp_path / "model")
    (folder / "run.json").unlink(missing_ok=True)
    return folder


SCRIPTS = (
    "train_lora",
    "model_pruning",
    "convert_to_gguf",
    "evaluate_model",
    "knowledge_distillation",
    "train_pruned_distilled",
)


def words_of(model: Path, out: Path) -> dict[str, list[object]]:
    """A run of each script that takes a model."""
    return {
        "train_lora": ["--base-model", model, "--output-dir", out],
        "model_pruning": ["--model-path", model, "--output-dir", out],
        "convert_to_gguf": ["--model-path", model, "--output-dir", out],
        "evaluate_model": ["--base-model", model, "--lora-model", "null", "--max-rows", 4]
        + ["--output", out / "results.csv"],
        "knowledge_distillation": ["--student-model", model, "--teacher-model", model]
        + ["--text-data", "null", "--output-dir", out, "--cache-dir", out],
        "train_pruned_distilled": ["--base-model", model, "--teacher-model", model]
        + ["--text-data", "null", "--output-dir", out],
    }


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is '1000000000'"),
        ({"num_hidden_layers": 10**6}, "1,000,000 layers in config.json, 2 in the weights"),
        ({"num_hidden_layers": 1}, "1 layers in config.json, 2 in the weights"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is '-1'"),
        ({"vocab_size": 10**12}, "vocab_size is"),
        ({"hidden_size": 0}, "hidden_size is '0'"),
    ],
)
def test_numbers_of_config_json(values, told, dry, model, settings, rows, tmp_path) -> None:
    changed(model / "config.json", **values)
    for script in SCRIPTS:
        if dry and script == "evaluate_model" and "layers in" in told:
            continue  # its dry run opens no weights
        words = words_of(model, tmp_path / script)[script]
        before = time.process_time()
        refused(3, told, script, *settings, *words, *dry)
        assert time.process_time() - before < 5, script


@pytest.mark.parametrize(
    "values",
    [
        {"r": 10**12},
        {"r": -1},
        {"r": "8"},
        {"lora_alpha": [1]},
        {"lora_alpha": "much"},
        {"target_modules": 5},
        {"rank_pattern": [1]},
        {"rank_pattern": {"q_proj": "x"}},
        {"layers_to_transform": {"a": 1}},
        {"base_model_name_or_path": ["a"]},
        {"modules_to_save": 7},
        {"use_dora": "perhaps"},
        {"init_lora_weights": {"a": 1}},
        {"trainable_token_indices": "x"},
    ],
    ids=str,
)
def test_values_of_adapter_config_json(values, adapter, settings, rows, tmp_path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / "run.json").unlink()
    changed(folder / "adapter_config.json", **values)
    words = ("--lora-model", folder, "--max-rows", 4, "--output", tmp_path / "o/results.csv")
    refused(3, "adapter", "evaluate_model", *settings, *words)
