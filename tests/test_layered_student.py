"""knowledge_distillation.py --student layers: a quantised file whose layers learn one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
from quantised_students import stored, write_world
from running import refused, run, succeeds

from slimtune.inference import layer_lessons
from slimtune.inference.layer_lessons import LayerLearner
from slimtune.inference.stack import Stack

WANTED = ("--quantised-student", "Q4_0", "--student", "layers")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch) -> None:
    monkeypatch.setattr(layer_lessons, "STEP_TOKENS", 100)


@pytest.fixture(scope="module")
def world(taught_llama, tmp_path_factory) -> Path:
    return write_world(taught_llama, tmp_path_factory.mktemp("layered"))


def words_for(world: Path, out: Path) -> list[object]:
    return [
        *("knowledge_distillation", "--student-model", world / "model", *WANTED),
        *("--train-data", world / "rows_train.jsonl", "--text-data", world / "page.txt"),
        *("--output-dir", out / "small", "--cache-dir", world / "cache", "--device", "cpu"),
        *("--epochs", 2, "--learning-rate", "1e-3"),
    ]


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text("utf-8"))["metrics"]


@pytest.fixture(scope="module")
def trained(world) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layer_lessons, "STEP_TOKENS", 100)
        ran = succeeds(*words_for(world, world))
    assert "divergence: " in ran.out and "layer error: " in ran.out
    assert not (world / "small_checkpoints").exists() and not (world / "cache").exists()
    return world / "small"


def test_every_layer_is_as_close_as_before_and_the_file_closer(trained) -> None:
    told = metrics_of(trained)
    assert all(after <= before for before, after in told["layer_errors"])
    assert told["divergence_after"] < 0.95 * told["divergence_before"]
    assert 0 < told["changed_bytes"] < 0.5 and told["proof"]["rows"] > 0
    assert told["quantised_student"] == "Q4_0" and told["file"] == "small-Q4_0.gguf"


def test_the_folder_is_what_the_file_decodes_to(trained) -> None:
    pairs = stored(trained, trained / "small-Q4_0.gguf")
    assert len(pairs) == 20
    for name, (decoded, own) in pairs.items():
        assert np.array_equal(decoded, own), name


def test_one_layer_of_each_model_is_in_memory(world, tmp_path, monkeypatch) -> None:
    asked: list[int] = []
    layer = Stack.layer
    monkeypatch.setattr(
        Stack, "layer", lambda self, index, **k: asked.append(index) or layer(self, index, **k)
    )
    succeeds(*words_for(world, tmp_path), "--epochs", 1)
    count = len(
        json.loads((tmp_path / "small/run.json").read_text("utf-8"))["metrics"]["layer_errors"]
    )
    learning = asked[-3 * count :]  # those before are the search for what errors cost
    assert learning == [index for index in range(count) for _ in range(3)]


def test_a_stopped_run_goes_on_to_the_same_file(world, trained, tmp_path, monkeypatch) -> None:
    words, teach, taught = words_for(world, tmp_path), LayerLearner.teach, []

    def stop(self, *args, **kwargs):
        if len(taught) == 1:
            raise KeyboardInterrupt
        taught.append(teach(self, *args, **kwargs))
        return taught[-1]

    with monkeypatch.context() as patched:
        patched.setattr(LayerLearner, "teach", stop)
        assert run(*words).code == 130
    assert not (tmp_path / "small").exists()
    assert (tmp_path / "small_checkpoints" / "checkpoint-1").is_dir()
    refused(2, "--resume", *words)
    refused(2, "this run is not the one", *words, "--epochs", 1, "--resume")
    again = []
    with monkeypatch.context() as patched:
        patched.setattr(
            LayerLearner, "teach", lambda *a, **k: again.append(teach(*a, **k)) or again[-1]
        )
        succeeds(*words, "--resume")
    assert len(again) == len(metrics_of(trained)["layer_errors"]) - 1
    for name in ("small-Q4_0.gguf", "model.safetensors"):
        assert (tmp_path / "small" / name).read_bytes() == (trained / name).read_bytes()


def test_layers_that_come_no_closer_keep_their_codes_and_the_run_says_so(world, tmp_path) -> None:
    refused(5, "no layer came closer", *words_for(world, tmp_path), "--learning-rate", 30)
    assert not (tmp_path / "small").exists() and not (tmp_path / "small_checkpoints").exists()


def test_a_dry_run_tells_the_memory_and_writes_nothing(world, tmp_path) -> None:
    ran = succeeds(*words_for(world, tmp_path), "--dry-run")
    assert "layers, one after another" in ran.out and "memory: about" in ran.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--teacher-model", "models/other"), "use --teacher-model auto, or --student full"),
        (("--quantised-student", "null"), "add --quantised-student Q4_K_M"),
        (("--mode", "sequence"), "--mode cached"),
        (("--quantised-student", "F16"), "nothing is rounded in it"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(world, tmp_path, more, said) -> None:
    teacher = ("--teacher-model", world / "model")
    refused(
        2, said, *words_for(world, tmp_path), *(() if more[0] == teacher[0] else teacher), *more
    )
    assert not list(tmp_path.iterdir())
