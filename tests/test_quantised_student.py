"""knowledge_distillation.py --quantised-student: the file that ships is what was trained."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from quantised_students import stored, write_world
from running import refused, run, succeeds
from tiny_folders import write_tiny_llama

from slimtune.training.callbacks import ProgressShown


@pytest.fixture(scope="module")
def world(taught_llama, tmp_path_factory) -> Path:
    return write_world(taught_llama, tmp_path_factory.mktemp("quantised"))


def words_for(world: Path, out: Path, wanted: str = "Q4_K_M") -> list[object]:
    return [
        *("knowledge_distillation", "--student-model", world / "model"),
        *("--train-data", world / "rows_train.jsonl", "--text-data", world / "page.txt"),
        *("--output-dir", out / "small", "--cache-dir", world / "cache", "--device", "cpu"),
        *("--quantised-student", wanted, "--epochs", 3, "--batch-size", 4),
        *("--learning-rate", "1e-4"),
    ]


@pytest.fixture(scope="module")
def trained(world) -> Path:
    """The folder of a student trained through the types of Q4_K_M."""
    ran = succeeds(*words_for(world, world))
    assert "small-Q4_K_M.gguf" in ran.out and "divergence: " in ran.out
    assert "fallbacks: " in ran.out and "blk.*.ffn_down.weight (" in ran.out
    return world / "small"


def test_what_is_written_decodes_to_exactly_what_training_multiplied_with(trained) -> None:
    pairs = stored(trained, trained / "small-Q4_K_M.gguf")
    assert len(pairs) == 20
    for name, (decoded, own) in pairs.items():
        assert np.array_equal(decoded, own), name
    types = {
        str(t.tensor_type.name) for t in gguf.GGUFReader(trained / "small-Q4_K_M.gguf").tensors
    }
    assert types == {"F32", "F16", "Q5_0", "Q8_0"}


def test_it_is_nearer_to_its_teacher_than_the_encoder_alone_and_the_record_says_so(trained) -> None:
    record = json.loads((trained / "run.json").read_text("utf-8"))
    told = record["metrics"]
    assert told["quantised_student"] == "Q4_K_M" and told["file"] == "small-Q4_K_M.gguf"
    assert told["divergence_after"] < told["divergence_before"]
    assert 0 < told["changed_bytes"] < 0.5
    assert "blk.0.attn_q.weight (Q5_0)" in told["file_fallbacks"]
    assert told["proof"]["rows"] > 0
    assert record["files"]["small-Q4_K_M.gguf"]
    assert record["settings"]["distillation"]["teacher_model"].endswith("model")


def test_a_stopped_run_goes_on_to_the_same_file(world, trained, tmp_path, monkeypatch) -> None:
    def stop(self, args, state, control, logs=None, **kwargs) -> None:
        if state.global_step == 9:
            raise KeyboardInterrupt

    words = words_for(world, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ProgressShown, "on_log", stop)
        assert run(*words).code == 130
    assert not (tmp_path / "small").exists()
    succeeds(*words, "--resume")
    for name in ("small-Q4_K_M.gguf", "model.safetensors"):
        assert (tmp_path / "small" / name).read_bytes() == (trained / name).read_bytes()


def test_a_size_is_kept_and_a_dry_run_tells_it(world, tmp_path) -> None:
    words = words_for(world, tmp_path, "120kB")
    ran = succeeds(*words, "--dry-run")
    assert "file: 120kB" in ran.out and not list(tmp_path.iterdir())
    succeeds(*words, "--epochs", 1)
    (file,) = (tmp_path / "small").glob("*.gguf")
    assert file.name == "small-120kB.gguf" and file.stat().st_size <= 120_000
    refused(2, "--quantised-student 11", *words_for(world, tmp_path / "other", "20kB"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--student", "lora"), "--student layers"),
        (("--mode", "sequence"), "--mode cached"),
        (("--quantised-student", "F16"), "nothing is rounded in it"),
        (("--quantised-student", "Q4_K_X"), "for example --quantised-student Q4_K_M"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(world, tmp_path, more, said) -> None:
    refused(2, said, *words_for(world, tmp_path), *more)
    assert not list(tmp_path.iterdir())


def test_rows_that_no_type_holds_are_refused(world, tmp_path) -> None:
    write_tiny_llama(tmp_path / "odd", hidden=36, intermediate_size=36, num_attention_heads=2)
    words = words_for(world, tmp_path / "out")
    refused(2, "multiple of 32", *words, "--student-model", tmp_path / "odd")


def test_a_model_that_is_quantised_already_is_refused(world, tmp_path) -> None:
    shutil.copytree(world / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "model/config.json").write_text(json.dumps(config), encoding="utf-8")
    words = words_for(world, tmp_path / "out")
    refused(3, "quanti", *words, "--student-model", tmp_path / "model")
