"""Trainings that learned nothing or blew up, and weights that are no numbers: told by name, kept
nowhere."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from running import leaves_nothing, refused, succeeds
from safetensors.torch import load_file, save_file
from tiny_folders import write_tiny_llama

from slimtune.artifacts import run_of
from slimtune.artifacts.files import broken, json_line, write_json
from slimtune.training.curve import Curve, write_history
from slimtune.training.distillation import perplexities
from slimtune.training.effect import BlownUp, require_learned

pytestmark = pytest.mark.faults

VOCABULARY = 1024
GUESS = math.log(VOCABULARY)


def curve(*losses: float, validated: bool = True, part: str = "loss") -> Curve:
    """A run's losses; the first is that before its first step."""
    name = f"eval_{part}" if validated else part
    more = {"eval_loss" if validated else "loss": 0.5} if part != "loss" else {}
    history = [{"step": step, name: loss} | more for step, loss in enumerate(losses)]
    return Curve([{"step": 0, "loss": losses[0]}] * validated + history, 1.0, 1, len(losses))


@pytest.mark.parametrize(
    ("losses", "rate", "validated"),
    [
        ((2.0, 9.0, 8.0), 1e-3, True),  # worse than before, at any rate
        ((2.0, 2.001), 1e-3, True),
        ((8.7, GUESS, GUESS), 1e-3, True),  # every token alike: the weights are beyond measure
        ((8.7, GUESS + 0.2), 1.0, True),  # better than before, and no better than guessing
        ((8.7, GUESS, GUESS), 1e-3, False),
        ((2.0, *[3.5] * 9), 1e-3, False),
        ((8.7, *[GUESS + 0.2] * 9), 1.0, False),
    ],
)
def test_what_has_learned_nothing_or_blown_up(losses, rate, validated) -> None:
    with pytest.raises(BlownUp, match=r"training blew up: \w+ loss") as error:
        require_learned(curve(*losses, validated=validated), VOCABULARY, "training", rate, 1e-3)
    assert error.value.exit_code == 5 and "0.001 is usual" in error.value.why


@pytest.mark.parametrize(
    ("losses", "rate", "validated"),
    [
        ((2.0, 9.0, 1.9), 1e-3, True),  # one of them is kept
        ((9.5, 8.7), 1e-3, True),  # far from its language, on its way
        ((8.7, 4.0), 1.0, True),
        ((2.0, 2.5, 2.4, 2.9), 1e-3, False),  # hard rows
        ((8.7,), 1.0, False),  # one step says nothing of what it did
    ],
)
def test_what_is_on_its_way(losses, rate, validated) -> None:
    require_learned(curve(*losses, validated=validated), VOCABULARY, "training", rate, 1e-3)


def test_a_student_is_judged_by_its_cross_entropy() -> None:
    with pytest.raises(BlownUp, match="distillation blew up"):
        require_learned(curve(2.0, 3.0, part="ce"), VOCABULARY, "distillation", 1e-3, 1e-3)


@pytest.mark.parametrize(("labels", "lost"), [((0.111, 0.113), False), ((2.0, 3.5), True)])
def test_a_student_that_came_closer_to_its_teacher_may_lose_a_little(labels, lost) -> None:
    """Its layers had been taught already: the run ended with 5 after an hour, and kept nothing."""
    judged = [
        {"step": step, "eval_loss": loss, "eval_ce": ce}
        for step, (loss, ce) in enumerate(zip((0.0812, 0.076), labels, strict=True))
    ]
    found = Curve([{"step": 0, "loss": 0.08}, *judged], 1.0, 1, 2)
    if lost:
        with pytest.raises(BlownUp):
            require_learned(found, VOCABULARY, "distillation", 1e-4, 1e-4)
    else:
        require_learned(found, VOCABULARY, "distillation", 1e-4, 1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_rate_of_a_million_ends_with_5(method, settings, rows, tmp_path) -> None:
    """The adapter's loss is ln V: it was saved, untrained; whole weights meet NaN on their way."""
    words = ("--method", method, "--learning-rate", "1e6", "--output-dir", tmp_path / "out")
    error = refused(5, "training", "train_lora", *settings, *words)
    assert "lower --learning-rate" in error[2]
    assert not list((tmp_path / "out").glob("*/run.json"))
    if method == "lora":
        assert leaves_nothing(tmp_path / "out")  # it came to its end: nothing to go on with


def test_whole_weights_that_got_worse_end_with_5(settings, rows, tmp_path) -> None:
    """A loss of 35 where it was 7: a model was written, and the summary said 7 -> 7."""
    judged = ("--val-data", rows / "train_train.jsonl", "--epochs", 2)  # enough rows to judge by
    words = ("--method", "full", "--learning-rate", "1", "--output-dir", tmp_path / "out", *judged)
    refused(5, "training blew up: validation loss", "train_lora", *settings, *words)


@pytest.mark.parametrize(
    ("flag", "stage", "whole"),
    [
        ("--distillation-learning-rate", "distillation", ["pruned", "teacher_cache"]),
        ("--learning-rate", "training", ["pruned", "teacher_cache", "distilled"]),
    ],
)
def test_a_combined_run_names_the_stage_that_blew_up(
    flag, stage, whole, settings, merged, tmp_path
) -> None:
    """What had ended well stays, and nothing else."""
    words = ["--epochs", 1, "--distillation-epochs", 1, "--stages", "prune,cache,distil,lora,merge"]
    folders = ["--output-dir", tmp_path / "out", "--cache-dir", tmp_path / "cache"]
    words += [*folders, "--text-data", "null", flag, "1e6"]
    error = refused(5, stage, "train_pruned_distilled", *settings, *words)
    assert stage in error[0] and f"lower {flag}" in error[2]
    left = {path.name for path in (tmp_path / "out").glob("[!.]*") if path.suffix != ".lock"}
    assert {name for name in left if "checkpoints" not in name} == set(whole)
    for name in whole:
        run = run_of(tmp_path / "out" / name)
        assert broken(tmp_path / "out" / name, run["files"]) is None


@pytest.fixture(scope="module")
def with_nan(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which one number in a norm is NaN."""
    folder = tmp_path_factory.mktemp("nan") / "model"
    return spoil(shutil.copytree(project / "base", folder), "model.safetensors", "norm")


@pytest.mark.parametrize(
    ("part", "scale", "code"), [("layers.0", 0.0, 0), ("", 1e30, 0), ("layers.0.mlp", 1e30, 3)]
)
def test_layers_that_say_nothing_or_too_much_are_no_bug_of_pruning(
    part, scale, code, settings, rows, project, tmp_path
) -> None:
    """Zeros, as a disk leaves them, leave nothing to refit, and norms make zeros of 10³⁰ as well;
    products of 10³⁰ are no numbers."""
    folder = shutil.copytree(project / "base", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    scaled = {name: one * scale if part in name else one for name, one in weights.items()}
    save_file(scaled, folder / "model.safetensors", {"format": "pt"})
    words = ("model_pruning", *settings, "--model-path", folder, "--output-dir", tmp_path / "out")
    if code:
        refused(code, "what it computes on the calibration rows is no number", *words)
    else:
        succeeds(*words)


def spoil(folder: Path, file: str, part: str) -> Path:
    (folder / "run.json").unlink(missing_ok=True)
    weights = load_file(folder / file)
    name = next(name for name in weights if part in name)
    weights[name].view(-1)[-1] = torch.nan
    save_file(weights, folder / file, {"format": "pt"})
    return folder


@pytest.mark.usefixtures("in_process")
def test_weights_that_are_no_numbers_are_refused_by_name(
    with_nan, settings, rows, project, tmp_path
) -> None:
    words = {
        "train_lora": ["--base-model", with_nan, "--output-dir", tmp_path / "a"],
        "evaluate_model": ["--base-model", with_nan, "--lora-model", "null", "--max-rows", 4]
        + ["--output", tmp_path / "b/results.csv"],
        "model_pruning": ["--model-path", with_nan, "--output-dir", tmp_path / "c"],
        "knowledge_distillation": ["--student-model", with_nan, "--teacher-model", project / "base"]
        + ["--text-data", "null", "--output-dir", tmp_path / "d", "--cache-dir", tmp_path / "e"],
    }
    for script, more in words.items():
        error = refused(3, "norm.weight holds NaN or infinity", script, *settings, *more)
        assert with_nan.name in error[0] and "copy it again" in error[2]


def in_two_shards(folder: Path) -> Path:
    """The weights of a folder in two files and an index; the last layer's norms in the second."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    second = {name for name in weights if "layers.1" in name}
    names = {name: f"model-0000{1 + (name in second)}-of-00002.safetensors" for name in weights}
    for shard in set(names.values()):
        part = {name: one for name, one in weights.items() if names[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", ["the second of two shards", "tied weights"])
def test_nan_wherever_it_lies_is_refused_by_name(kind, settings, rows, project, tmp_path) -> None:
    folder = tmp_path / "model"
    if kind == "tied weights":
        write_tiny_llama(folder, hidden=64, tie_word_embeddings=True)
        file, part = "model.safetensors", "embed_tokens"
    else:
        in_two_shards(shutil.copytree(project / "base", folder))
        file, part = "model-00002-of-00002.safetensors", "layers.1.mlp.up_proj"
    spoil(folder, file, part)
    more = ("--lora-model", "null", "--max-rows", 4, "--output", tmp_path / "b/results.csv")
    words = {"train_lora": ("--output-dir", tmp_path / "a"), "evaluate_model": more}
    for script, own in words.items():
        told = f"{part}.weight holds NaN or infinity"
        error = refused(3, told, script, *settings, "--base-model", folder, *own)
        assert folder.name in error[0]
    assert not (tmp_path / "a/lora_adapter").exists() and not (tmp_path / "b/results.csv").exists()


@pytest.mark.usefixtures("in_process")
def test_an_adapter_that_is_no_numbers_is_refused_by_name(
    adapter, settings, project, tmp_path
) -> None:
    folder = spoil(shutil.copytree(adapter, tmp_path / "a"), "adapter_model.safetensors", "lora_B")
    words = ("--lora-model", folder, "--max-rows", 4, "--output", tmp_path / "b/results.csv")
    refused(3, "holds NaN or infinity", "evaluate_model", *settings, *words)


def test_a_loss_beyond_what_e_to_it_can_hold_is_a_perplexity_all_the_same() -> None:
    history = [{"step": 0, "eval_loss": 1e4}, {"step": 1, "eval_loss": 2.0}]
    found = perplexities(Curve(history, 1.0, 1, 1))
    assert 1e300 < found["perplexity_before"] < math.inf and found["perplexity_after"] == 7.389


def test_json_never_holds_a_bare_nan(tmp_path) -> None:
    history = [{"step": 1, "loss": math.nan, "more": [math.inf, {"a": -math.inf}]}]
    write_history(tmp_path / "metrics.jsonl", history)
    write_json(tmp_path / "run.json", {"metrics": history})
    line = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert line == json_line(history[0]) and line.endswith("\n")
    for text in (line, (tmp_path / "run.json").read_text(encoding="utf-8")):
        json.loads(text, parse_constant=pytest.fail)
