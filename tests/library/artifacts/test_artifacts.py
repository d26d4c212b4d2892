"""Stages: whole or not at all, never over finished work, and readers that notice every damage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slimtune.artifacts import lineage, refuse_finished, require, stage_files, stage_folder
from slimtune.config import Config, Options
from slimtune.errors import InputError, LockedError, SettingsError


def config(**options: bool) -> Config:
    settings = Config()
    settings._options = Options(**options)
    return settings


def finish(folder: Path, text: str = "weights", **options: bool) -> None:
    with stage_folder("model_pruning", folder, config(**options)) as stage:
        (stage.folder / "model.bin").write_text(text)
        stage.metrics["parameters"] = 5


def test_a_finished_folder_has_its_record(tmp_path: Path) -> None:
    finish(tmp_path / "pruned")
    run = json.loads((tmp_path / "pruned/run.json").read_text())
    assert run["stage"] == "model_pruning" and run["metrics"] == {"parameters": 5}
    assert run["files"]["model.bin"]["bytes"] == 7
    assert not (tmp_path / "pruned.partial").exists()
    require(tmp_path / "pruned")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no owner's bits")
def test_whoever_may_read_the_folder_may_read_all_its_files(tmp_path: Path) -> None:
    """safetensors writes for the owner alone: Ollama's user could not import what was trained."""
    with stage_folder("model_pruning", tmp_path / "pruned", config()) as stage:
        save_file({"a": torch.ones(2)}, stage.folder / "model.safetensors")
    modes = {one.name: one.stat().st_mode & 0o777 for one in (tmp_path / "pruned").iterdir()}
    assert modes["model.safetensors"] == modes["run.json"]


def test_the_card_may_be_edited_and_nothing_else(tmp_path: Path) -> None:
    """The guide has people put the Hub's name of the base into it before they pass it on."""
    with stage_folder("model_pruning", tmp_path / "pruned", config()) as stage:
        (stage.folder / "README.md").write_text("base_model:")
        (stage.folder / "model.bin").write_text("weights")
    (tmp_path / "pruned/README.md").write_text("base_model: owner/name")
    require(tmp_path / "pruned")
    (tmp_path / "pruned/README.md").unlink()
    require(tmp_path / "pruned")
    (tmp_path / "pruned/model.bin").write_text("weightS")
    with pytest.raises(InputError, match="model.bin: not as model_pruning left it"):
        require(tmp_path / "pruned")


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), stage_folder("x", tmp_path / "out", config()) as stage:
        (stage.folder / "half").write_text("h")
        raise RuntimeError
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_finished_work_is_replaced_only_when_asked(tmp_path: Path) -> None:
    finish(tmp_path / "pruned")
    with pytest.raises(SettingsError, match="exists already"):
        finish(tmp_path / "pruned", "other")
    assert (tmp_path / "pruned/model.bin").read_text() == "weights"
    finish(tmp_path / "pruned", "other", overwrite=True)
    assert (tmp_path / "pruned/model.bin").read_text() == "other"
    assert not (tmp_path / "pruned.old").exists()


def test_a_failure_while_overwriting_keeps_the_old_folder(tmp_path: Path) -> None:
    finish(tmp_path / "pruned")
    with (
        pytest.raises(KeyboardInterrupt),
        stage_folder("x", tmp_path / "pruned", config(overwrite=True)),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / "pruned/model.bin").read_text() == "weights"


def test_a_folder_of_the_users_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="no stage of SlimTune wrote"):
        refuse_finished(tmp_path / "mine", config())


def test_a_second_run_is_told_who_holds_the_output(tmp_path: Path) -> None:
    with stage_folder("x", tmp_path / "out", config()):
        code = (
            "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
            "from slimtune.artifacts import stage_folder; from slimtune.config import Config\n"
            "from slimtune.errors import LockedError\n"
            "try:\n"
            "    with stage_folder('x', Path(sys.argv[1]) / 'out', Config()): pass\n"
            "except LockedError as error: print(error)\n"
        )
        root = Path(__file__).parents[3] / "finetune"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(root)], capture_output=True, text=True
        )
    assert f"process {os.getpid()}" in done.stdout, done.stderr


def test_the_lock_goes_with_its_run(tmp_path: Path) -> None:
    with (
        stage_folder("x", tmp_path / "out", config()),
        pytest.raises(LockedError),
        stage_folder("x", tmp_path / "out", config()),
    ):
        pass
    with stage_folder("x", tmp_path / "out", config(overwrite=True)):
        pass


def test_files_arrive_together_with_their_manifest(tmp_path: Path) -> None:
    manifest, rows = tmp_path / "data/train_run.json", tmp_path / "data/train_train.jsonl"
    with stage_files("prepare_data", manifest, config(), outputs=[rows]) as stage:
        (stage.folder / "train_train.jsonl").write_text("{}")
        assert not manifest.exists()
    assert (tmp_path / "data/train_train.jsonl").read_text() == "{}"
    require(tmp_path / "data/train_train.jsonl")
    again = stage_files("prepare_data", manifest, config(), outputs=[rows])
    with pytest.raises(SettingsError), again:
        pass


@pytest.mark.parametrize("damage", ["zeros", "gone"])
def test_a_reader_notices_damage(tmp_path: Path, damage: str) -> None:
    finish(tmp_path / "pruned")
    file = tmp_path / "pruned/model.bin"
    file.write_bytes(b"weigh\0\0") if damage == "zeros" else file.unlink()
    with pytest.raises(InputError, match="SHA-256"):
        require(tmp_path / "pruned")


def test_a_reader_names_the_script_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_pruning\.py"):
        require(tmp_path / "models/pruned")
    (tmp_path / "models/gguf.partial").mkdir(parents=True)
    with pytest.raises(InputError, match="did not finish"):
        require(tmp_path / "models/gguf.partial/a.gguf")
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"did you mean rows\.jsonl"):
        require(tmp_path / "row.jsonl")


def test_lineage_follows_the_inputs(tmp_path: Path) -> None:
    manifest, rows = tmp_path / "data/train_run.json", tmp_path / "data/train_train.jsonl"
    with stage_files("prepare_data", manifest, config(), outputs=[rows]) as stage:
        (stage.folder / "train_train.jsonl").write_text("{}")
    with stage_folder("train_lora", tmp_path / "lora_adapter", config(), inputs=[rows]) as stage:
        (stage.folder / "adapter").write_text("a")
    runs = lineage(tmp_path / "lora_adapter")
    assert list(runs) == ["train_lora", "prepare_data"]
    assert runs["train_lora"]["inputs"][0]["run_id"] == runs["prepare_data"]["run_id"]
