"""One small project that the scripts themselves have built, stage by stage, when a test needs it.

    config.yaml  base/  raw.json  ->  rows/  ->  tuned/lora_adapter  ->  tuned/merged_model  -> ...

Tests only read it and write into folders of their own. A stage takes up to ten seconds, so all test
processes of a run have one project: the first that wants a stage makes it while the others wait.
Any part of the suite still runs alone, in any order and in any number of processes (hermetic.py
holds the tests to that, and `project` that nobody else has written into it).
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `long`, unless --all or a test by its own name is asked for."""
    if config.getoption("--all") or any("::" in word for word in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def started_by_users() -> Iterator[Callable[..., object]]:
    """llama.cpp's processes are forks of one (llama_starts.py); here is what starts them else."""
    from llama_starts import Server

    from slimtune.inference import llama_child

    server, usual = Server(), llama_child._start
    with patch.object(llama_child, "_start", server.start if hasattr(os, "fork") else usual):
        yield usual
    server.close()


@pytest.fixture(scope="module")
def llama_cpp_as_users_start_it(started_by_users) -> Iterator[None]:
    """A Python of its own for each of llama.cpp's processes, as everywhere but in the tests."""
    from slimtune.inference import llama_child

    with patch.object(llama_child, "_start", started_by_users):
        yield


@pytest.fixture(scope="session")
def scripts_imported() -> None:
    """What the scripts import inside their main changes the environment: once, for all tests."""
    importlib.import_module("slimtune.training.distillation_stage")


@pytest.fixture
def world(scripts_imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: what looks like all that the eight scripts read, and cannot be."""
    from eight_scripts import write_world

    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What the fixtures below leave in the project's folder; `cache` is distillation's.
STAGES = {"rows", "tuned", "pruned", "distilled", "cache", "gguf"}
GIVEN = {"config.yaml", "raw.json", "text.txt", "base"}


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[], object]], None]:
    """`once(name, make)` calls `make` in the first test process that wants it, and only there."""
    shared = shared_folder(tmp_path_factory)

    def made(name: str, make: Callable[[], object]) -> None:
        done = shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                make()
                done.touch()

    return made


def shared_folder(tmp_path_factory) -> Path:
    """The temporary folder of this run; each of xdist's processes has its own below it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def project(tmp_path_factory, once) -> Iterator[Path]:
    """A folder with config.yaml, a random base model, raw rows and plain text."""
    folder = shared_folder(tmp_path_factory) / "project"
    once("project", lambda: write_project(folder))
    yield folder
    found = {path.name for path in folder.glob("[!.]*")}
    assert found <= GIVEN | STAGES, "a test has written into the project that all tests read"
    assert len(list(folder.glob("cache/[!.]*"))) <= 1, "a test has filled the project's cache"


def write_project(folder: Path) -> None:
    from tiny_folders import write_tiny_llama

    folder.mkdir()
    (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    (folder / "raw.json").write_text(json.dumps(raw_rows(), ensure_ascii=False), "utf-8")
    (folder / "text.txt").write_text("\n".join(TOLD.values()) + "\n", encoding="utf-8")
    write_tiny_llama(folder / "base", hidden=64)


@pytest.fixture(scope="session")
def taught_llama(tmp_path_factory, once) -> Path:
    """The folder of a Llama that has learned a page by heart (taught_llama.py), to be read only."""
    from taught_llama import write_taught_llama

    folder = shared_folder(tmp_path_factory) / "taught"
    once("taught", lambda: write_taught_llama(folder))
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
def rows(project, settings, once) -> Path:
    once("rows", lambda: succeeds("prepare_data", *settings))
    return project / "rows"


@pytest.fixture(scope="session")
def adapter(project, settings, rows, once) -> Path:
    once("adapter", lambda: succeeds("train_lora", *settings))
    return project / "tuned" / "lora_adapter"


@pytest.fixture(scope="session")
def merged(project, settings, adapter, once) -> Path:
    once("merged", lambda: succeeds("evaluate_model", *settings, "--merge"))
    return project / "tuned" / "merged_model"


@pytest.fixture(scope="session")
def pruned(project, settings, merged, once) -> Path:
    once("pruned", lambda: succeeds("model_pruning", *settings))
    return project / "pruned"


@pytest.fixture(scope="session")
def distilled(project, settings, pruned, once) -> Path:
    once("distilled", lambda: succeeds("knowledge_distillation", *settings))
    return project / "distilled"


@pytest.fixture(scope="session")
def gguf(project, settings, merged, once) -> Path:
    once("gguf", lambda: succeeds("convert_to_gguf", *settings))
    return project / "gguf" / "tiny-F16.gguf"
