"""The scripts themselves on folders that came with somebody's data: nothing there changes."""

import json
import shutil
from pathlib import Path

import pytest
from hostile import ATTACKS, ROWS, came_in, everything
from running import files_under, refused, run, succeeds

from slimtune.artifacts import require
from slimtune.data import writing

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def came(tmp_path: Path) -> Path:
    return came_in(tmp_path)


@pytest.fixture
def attacked(came: Path, project: Path, rows: Path) -> Path:
    """All attacks at once, beside a model and rows that are as good as any."""
    for name in ("base", "other"):
        shutil.copytree(project / "base", came / name)
    for name in ("train_train.jsonl", "train_validation.jsonl", "train_test.jsonl"):
        shutil.copyfile(rows / name, came / name)
    shutil.copyfile(project / "raw.json", came / "raw.json")
    for attack in ATTACKS:
        attack(came, attack.__name__)
    return came


def words_of(script: str, came: Path, out: Path) -> list[object]:
    """A short run that reads all its inputs from the folder that came."""
    base, train = came / "base", came / ROWS
    words = {
        "create_sample_data": ["--rows", 60, "--text-lines", 10, "--models-dir", out / "sample"],
        "prepare_data": ["--input", came / "raw.json", "--base-model", base],
        "train_lora": ["--base-model", base, "--train-data", train, "--epochs", 1],
        "model_pruning": ["--model-path", base, "--train-data", train],
        "knowledge_distillation": ["--teacher-model", base, "--student-model", base]
        + ["--train-data", train, "--epochs", 1, "--text-data", "null", "--cache-dir", out / "c"],
        "evaluate_model": ["--base-model", base, "--lora-model", "null", "--models", came / "other"]
        + ["--train-data", train, "--max-rows", 4, "--output", out / "results.csv"],
        "convert_to_gguf": ["--model-path", base, "--test-data", came / "train_test.jsonl"],
        "train_pruned_distilled": ["--base-model", base, "--teacher-model", base]
        + ["--train-data", train, "--stages", "prune", "--text-data", "null"],
    }
    there = [] if script == "evaluate_model" else ["--output-dir", out]
    return [*words[script], *there]


SCRIPTS = [
    "create_sample_data",
    "prepare_data",
    "train_lora",
    "model_pruning",
    "knowledge_distillation",
    "evaluate_model",
    "convert_to_gguf",
    "train_pruned_distilled",
]


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_touches_what_it_reads(script, dry, attacked, settings, tmp_path) -> None:
    before = everything(tmp_path)
    out = tmp_path / "out/of"
    succeeds(script, *settings, *words_of(script, attacked, out), *dry)
    after = {k: v for k, v in everything(tmp_path).items() if k.split("/")[0] != "out"}
    assert after == before
    assert out.exists() != bool(dry)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--dry-run"]])
def test_prepare_data_takes_nothing_foreign(attack, flags, came, settings) -> None:
    attack(came, "train")
    before = everything(came.parent)
    words = ("prepare_data", *settings, "--output-dir", came, *flags)
    refused(2, "train.ready: not what a stopped run", *words)
    (came / ".train_run.json.lock").unlink(missing_ok=True)  # of a run that is no dry one
    assert everything(came.parent) == before


# The files of a stage in a folder that somebody else has filled: NAME of NAME.ready, and the flags.
WRITERS = {
    "create_sample_data": ("raw_data", ["--output-dir", "came", "--models-dir", "sample"]),
    "evaluate_model": ("results", ["--output", "came/results.csv", "--max-rows", 4]),
    "convert_to_gguf": ("tiny-F16", ["--output-dir", "came", "--quantization", "F16"]),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--dry-run"]])
@pytest.mark.parametrize("script", WRITERS)
def test_no_other_writer_of_files_does_either(
    script, flags, attack, came, settings, merged, adapter, monkeypatch
) -> None:
    monkeypatch.chdir(came.parent)
    name, words = WRITERS[script]
    attack(came, name)
    before = everything(came.parent)
    refused(2, f"{name}.ready: not what a stopped run", script, *settings, *words, *flags)
    (came / f".{name}_run.json.lock").unlink(missing_ok=True)
    assert everything(came.parent) == before


@pytest.mark.parametrize("script", ["model_pruning", "convert_to_gguf", "evaluate_model"])
def test_an_index_that_leads_out_of_the_folder_is_refused(script, attacked, settings) -> None:
    base = attacked / "base"
    (base / "model.safetensors").rename(attacked.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../../outside.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    words = words_of(script, attacked, attacked.parent / "out")
    refused(3, "may only speak of files inside", script, *settings, *words)


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--dry-run"]])
def test_a_folder_in_the_place_of_a_file_is_told_before_the_work(flags, settings, tmp_path) -> None:
    (tmp_path / "out/data_report.md").mkdir(parents=True)
    words = ("prepare_data", *settings, "--output-dir", tmp_path / "out", *flags)
    refused(2, "data_report.md: its place is taken", *words)
    (tmp_path / "out/data_report.md").rmdir()
    succeeds(*words)


def test_a_stuck_install_stops_only_its_own_writer(settings, tmp_path, monkeypatch) -> None:
    """A folder came into the way during the work: nothing is moved, and the cure is said."""
    out, write = tmp_path / "out", writing.write_outputs

    def in_the_way(*arguments: object) -> object:
        (out / "data_report.md").mkdir()
        return write(*arguments)

    words = ("prepare_data", *settings, "--output-dir", out)
    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_outputs", in_the_way)
        refused(2, "move", *words)
    stuck = files_under(out)
    assert "train_train.jsonl" not in stuck and "train.ready/train_train.jsonl" in stuck
    refused(2, "data_report.md: its place is taken", *words, "--overwrite")
    assert files_under(out) == stuck
    raw = shutil.copyfile(settings[1].with_name("raw.json"), out / "raw.json")
    succeeds("prepare_data", *settings, "--input", raw, "--output-dir", out, "--output-name", "b")
    reader = ("train_lora", *settings, "--train-data", out / ROWS, "--output-dir", tmp_path / "to")
    refused(3, "prepare_data.py` again", *reader)
    (out / "data_report.md").rmdir()
    assert "exists already" in run(*words).err
    require(out / ROWS)
    assert not (out / "train.ready").exists()
