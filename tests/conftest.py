"""One small project that the scripts themselves have built, stage by stage, when a test needs it.

    config.yaml  base/  raw.json  ->  rows/  ->  tuned/lora_adapter  ->  tuned/merged_model  -> ...

Tests only read it and write into folders of their own. Every test process has one: nothing is
shared between them, so any part of the suite runs alone, in any order and in any number of
processes (hermetic.py holds the tests to that).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import compared_here, succeeds
from tiny_rows import TOLD, raw_rows

pytest_plugins = ["hermetic"]

# Before torch is imported: the processes share the cores, and threads besides them only wait for
# each other. Child processes inherit it. Nothing here imports torch: the process that only hands
# out tests does without.
os.environ["OMP_NUM_THREADS"] = "1"

# Paths are relative to the file, so nothing of the repository's own data/ and models/ is touched.
SETTINGS = """\
model: {base_model: base, device: cpu}
data: {input: raw.json, output_dir: rows, validation_ratio: 0.15, test_ratio: 0.15}
pruning: {model_path: tuned/merged_model, output_dir: pruned}
distillation:
  {teacher_model: tuned/merged_model, student_model: pruned, output_dir: distilled,
   cache_dir: cache, text_data: text.txt, text_passages: 10, epochs: 3}
lora: {output_dir: tuned}
training: {train_data: rows/train_train.jsonl, epochs: 6, learning_rate: 1e-2, max_length: 128}
pruned_distilled: {output_dir: small}
generation: {max_new_tokens: 12}
evaluation: {lora_model: tuned/lora_adapter, output: evaluation/results.csv}
gguf: {model_path: tuned/merged_model, output_dir: gguf, model_name: tiny, quantization: F16,
       verify: quick}
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder with config.yaml, a random base model, raw rows and plain text."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    (folder / "raw.json").write_text(json.dumps(raw_rows(), ensure_ascii=False), "utf-8")
    (folder / "text.txt").write_text("\n".join(TOLD.values()) + "\n", encoding="utf-8")
    from tiny_folders import write_tiny_llama

    write_tiny_llama(folder / "base", hidden=64)
    return folder


@pytest.fixture(scope="session")
def settings(project) -> tuple[str, Path]:
    """`--config FILE`, the words that make a script run in the project."""
    return "--config", project / "config.yaml"


@pytest.fixture
def in_process() -> Iterator[None]:
    """Models compared without a child process each."""
    with compared_here():
        yield


@pytest.fixture(scope="session")
def rows(project, settings) -> Path:
    succeeds("prepare_data", *settings)
    return project / "rows"


@pytest.fixture(scope="session")
def adapter(project, settings, rows) -> Path:
    succeeds("train_lora", *settings)
    return project / "tuned" / "lora_adapter"


@pytest.fixture(scope="session")
def merged(project, settings, adapter) -> Path:
    succeeds("evaluate_model", *settings, "--merge")
    return project / "tuned" / "merged_model"


@pytest.fixture(scope="session")
def pruned(project, settings, merged) -> Path:
    succeeds("model_pruning", *settings)
    return project / "pruned"


@pytest.fixture(scope="session")
def distilled(project, settings, pruned) -> Path:
    succeeds("knowledge_distillation", *settings)
    return project / "distilled"


@pytest.fixture(scope="session")
def gguf(project, settings, merged) -> Path:
    succeeds("convert_to_gguf", *settings)
    return project / "gguf" / "tiny-F16.gguf"
