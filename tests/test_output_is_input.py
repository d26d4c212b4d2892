"""No script writes over what it reads: refused before anything is touched, under any name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import files_under, refused

# A script with its flags, and how a flag makes an output of what is said to be one.
ENDS: dict[str, tuple[list[str], str, str, list[str]]] = {
    # script: (flags, the flag of the output, what is put behind it, inputs)
    "create_sample_data": (["--output-dir", "{in}"], "--models-dir", "", ["in"]),
    "prepare_data": (["--input", "{in}"], "--output-dir", "", ["in"]),
    "model_pruning": ([], "--output-dir", "", ["base"]),
    "knowledge_distillation": ([], "--output-dir", "", ["base", "teacher", "rows"]),
    "train_lora": ([], "--output-dir", "lora_adapter", ["base", "rows"]),
    "train_pruned_distilled": ([], "--output-dir", "", ["base", "teacher", "rows"]),
    "evaluate_model": (["--merge"], "--output-dir", "", ["base", "adapter"]),
    "convert_to_gguf": (["--lora-model", "adapter"], "--output-dir", "", ["base", "adapter"]),
}
# What is no writing over: beside files that are read, a folder or more files.
HARMLESS = {
    ("prepare_data", "parent"),
    ("convert_to_gguf", "parent"),
    ("create_sample_data", "child"),
}


def through_a_link(folder: Path) -> Path:
    link = folder.with_name(f"link_to_{folder.name}")
    link.symlink_to(folder, target_is_directory=True)
    return link


NAMES: dict[str, Callable[[Path], Path]] = {
    "itself": lambda folder: folder,
    "dots": lambda folder: folder / "deep" / "..",
    "link": through_a_link,
    "child": lambda folder: folder / "deep",
    "parent": lambda folder: folder.parent,
}


CASES = [
    (script, read, name)
    for script, (*_, inputs) in ENDS.items()
    for read in inputs
    for name in NAMES
    if (script, name) not in HARMLESS and (read, name) != ("rows", "child")
]


@pytest.mark.parametrize(("script", "read", "name"), CASES)
def test_an_output_that_is_an_input_is_refused(script, read, name, world) -> None:
    flags, output, behind, _ = ENDS[script]
    target = NAMES[name](world / read)
    if behind:  # the stage's folder is one below what the flag names
        (world / "outer").mkdir()
        (world / "outer" / behind).symlink_to(target, target_is_directory=True)
        target = world / "outer"
    before = files_under(world)
    words = [word.replace("{in}", str(world / "in")) for word in flags]
    refused(
        2,
        "would write over it",
        script,
        "--config",
        "config.yaml",
        *words,
        output,
        target,
        "--overwrite",
    )
    assert files_under(world) == before


def test_a_comparison_never_replaces_its_rows_or_a_model_file(world) -> None:
    shutil.copy("rows/test.jsonl", "rows/report.html")
    for flags in (
        ["--output", "rows/test.jsonl"],
        ["--test-data", "rows/report.html", "--output", "rows/r.csv"],
        ["--output", "base/results.csv"],
        ["--output", "adapter/results.csv"],
        ["--models", "teacher", "--output", "teacher/results.csv"],
    ):
        before = files_under(world)
        words = ("--config", "config.yaml", *flags, "--overwrite")
        refused(2, "would write over it", "evaluate_model", *words)
        assert files_under(world) == before


@pytest.mark.parametrize("read", ["checkpoints", "out_checkpoints"])
def test_a_base_among_the_checkpoints_that_the_end_clears(read, world) -> None:
    shutil.copytree("base", f"out/{read}/checkpoint-2" if read == "checkpoints" else read)
    script = "train_lora" if read == "checkpoints" else "knowledge_distillation"
    flag = "--base-model" if read == "checkpoints" else "--student-model"
    base = f"out/{read}/checkpoint-2" if read == "checkpoints" else read
    before = files_under(world)
    words = ("--config", "config.yaml", flag, base, "--overwrite")
    refused(2, "would write over it", script, *words)
    assert files_under(world) == before
