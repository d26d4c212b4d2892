"""A dry run beside finished output: it answers as anywhere, and says what the run would need."""

import shutil
from pathlib import Path

import pytest
from running import files_under, refused, succeeds

# Script -> its flags, the fixtures that make its output (and what else it asks for), where it is.
ENDS: dict[str, tuple[list[str], str]] = {
    "prepare_data": ([], "rows"),
    "train_lora": ([], "tuned/lora_adapter"),
    "model_pruning": ([], "pruned"),
    "knowledge_distillation": ([], "distilled"),
    "train_pruned_distilled": ([], "small/pruned"),
    "evaluate_model": (["--merge"], "tuned/merged_model"),
    "convert_to_gguf": (["--create-modelfile"], "gguf/tiny-F16.gguf"),
}


@pytest.fixture(scope="module")
def finished(project, distilled, gguf, pruned, tmp_path_factory) -> Path:
    """A copy of the project with what every script writes; of the combined run, its first stage."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(project, folder)
    shutil.copytree(pruned, folder / "small" / "pruned")
    return folder


@pytest.mark.parametrize("script", ENDS)
def test_finished_output_is_no_obstacle(script, finished, monkeypatch) -> None:
    flags, output = ENDS[script]
    settings = ("--config", finished / "config.yaml")
    monkeypatch.chdir(finished)
    before = files_under(finished)
    refused(2, "--overwrite", script, *settings, *flags)
    ran = succeeds(script, *settings, *flags, "--dry-run")
    assert "would write" in ran.out and ran.out.endswith("nothing was written\n")
    (said,) = [line for line in ran.err.splitlines() if "would need --overwrite" in line]
    assert said.startswith("caution: ") and output.split("-")[0].split("/")[0] in said
    ran = succeeds(script, *settings, *flags, "--dry-run", "--overwrite")
    assert "would need" not in ran.err
    assert files_under(finished) == before


def test_a_modelfile_of_the_user_and_files_that_nobody_wrote(
    settings, merged, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Modelfile").write_text("FROM mine\n")
    Path("thesis.txt").write_text("mine")
    words = ("convert_to_gguf", *settings, "--output-dir", "out", "--create-modelfile")
    assert "Modelfile: exists already: the run itself" in succeeds(*words, "--dry-run").err
    words = ("model_pruning", *settings, "--output-dir", tmp_path)
    assert "no stage of SlimTune wrote: the run itself" in succeeds(*words, "--dry-run").err
    assert sorted(files_under(tmp_path)) == ["Modelfile", "thesis.txt"]


def test_what_stands_in_the_way_of_any_run_is_refused_by_a_dry_run_too(
    settings, merged, tmp_path
) -> None:
    """No --overwrite replaces a file by a folder."""
    (tmp_path / "out").write_text("a file")
    words = ("model_pruning", *settings, "--output-dir", tmp_path / "out", "--dry-run")
    refused(2, "its place is taken", *words)
