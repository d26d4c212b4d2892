"""Weights of the right shapes that know nothing are found by every stage that measures."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from running import refused, run, succeeds
from safetensors.torch import load_file, save_file

from slimtune.errors import InputError
from slimtune.inference import guessing
from slimtune.models import tokenizers
from slimtune.models.loading import load_model
from slimtune.sample.parts import WEIGHTS
from slimtune.training.attention import register
from slimtune.training.batches import Sample, encode_text
from slimtune.training.soundness import loss_on, require_sound

TOLD = "worse than guessing"


def damage(model: Path, folder: Path) -> Path:
    """A copy of a model with every matrix drawn again, far too large, and no record."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("run.json"))
    file = folder / "model.safetensors"
    torch.manual_seed(7)
    weights = {
        name: torch.randn(weight.shape).to(weight.dtype) if weight.dim() > 1 else weight
        for name, weight in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def damaged(project, tmp_path_factory) -> Path:
    return damage(project / "base", tmp_path_factory.mktemp("damaged") / "model")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_refuses_before_the_first_step(method, settings, damaged, rows, tmp_path) -> None:
    words = ("--base-model", damaged, "--method", method, "--output-dir", tmp_path)
    error = refused(3, TOLD, "train_lora", *settings, *words)
    assert "weights are damaged" in error[1] and "copy the model folder again" in error[2]
    assert not list(tmp_path.glob("[!.]*/run.json"))


@pytest.mark.parametrize("which", ["teacher", "student"])
@pytest.mark.parametrize("mode", ["cached", "online"])
def test_distillation_refuses(which, mode, settings, damaged, pruned, merged, tmp_path) -> None:
    models = {"teacher": merged, "student": pruned} | {which: damaged}
    words = [word for name, model in models.items() for word in (f"--{name}-model", model)]
    words += ["--mode", mode, "--output-dir", tmp_path / "out", "--cache-dir", tmp_path / "cache"]
    error = refused(3, TOLD, "knowledge_distillation", *settings, *words)
    assert str(damaged.name) in error[0]


def test_pruning_refuses_before_the_first_cut(settings, damaged, rows, tmp_path) -> None:
    words = ("--model-path", damaged, "--output-dir", tmp_path / "out")
    refused(3, TOLD, "model_pruning", *settings, *words)
    own = ("--calibration", "self", "--calibration-rows", 8, "--calibration-length", 32)
    refused(3, TOLD, "model_pruning", *settings, *words, *own)


@pytest.mark.usefixtures("in_process")
def test_a_comparison_says_so(settings, damaged, rows, project, tmp_path) -> None:
    words = ("--lora-model", "null", "--models", damaged, "--output", tmp_path / "results.csv")
    ran = succeeds("evaluate_model", *settings, *words, "--max-rows", 4)
    assert f"caution: {damaged.name}: {TOLD}" in ran.err
    assert TOLD in (tmp_path / "training_report.md").read_text(encoding="utf-8")


def test_a_conversion_says_so(settings, damaged, rows, tmp_path, caplog) -> None:
    """The file is a faithful copy of what it is made from: a word, and no refusal."""
    words = ("--model-path", damaged, "--output-dir", tmp_path, "--verify", "quick")
    run("convert_to_gguf", *settings, *words)
    assert f"caution: {damaged}: {TOLD}" in caplog.text


def test_the_samples_models_are_sound(caplog) -> None:
    """Its base loses more than guessing on chat rows: no caution, for it knows its own language."""
    for name in ("base", "teacher"):
        model = load_model(WEIGHTS / name)
        model.set_attn_implementation(register())
        tokenizer = tokenizers.load_tokenizer(WEIGHTS / name)
        strange = encode_text(["zyx wvu q" * 9], tokenizer, 64)
        assert loss_on(model, strange) > math.log(1024)
        require_sound(model, tokenizer, strange, str(WEIGHTS / name))
    assert not caplog.text


@pytest.mark.parametrize(
    ("rows", "plain", "pruned", "expected"),
    [
        (2.0, 99.0, False, "nothing"),  # it knows the rows
        (9.0, 2.0, False, "nothing"),  # and here a language
        (math.nan, 9.0, False, "nothing"),  # a matter of its own: "not a finite number"
        (6.3, 6.28, False, "nothing"),  # random, not damaged
        (7.1, 7.0, False, "caution"),
        (10.8, 10.9, True, "caution"),  # cut, and not trained since
        (10.8, 10.9, False, "error"),
    ],
)
def test_what_is_worse_than_guessing(rows, plain, pruned, expected, caplog, tmp_path) -> None:
    def judged() -> None:
        guessing.judge(tmp_path, rows, lambda: plain, 512, explained=pruned)

    if expected == "error":
        with pytest.raises(InputError, match="10.8 nats a token at its best"):
            judged()
        return
    judged()
    assert (TOLD in caplog.text) is (expected == "caution")


def test_a_pruned_model_may_be_worse_until_it_is_trained(pruned, tmp_path) -> None:
    """The record beside it, or beside one that it was made from, explains it."""
    assert guessing.was_pruned(pruned)
    assert not guessing.was_pruned(damage(pruned, tmp_path / "somebody's"))
    assert not guessing.was_pruned("owner/name")


def test_untrained_weights_may_learn(project, rows) -> None:
    """Random weights as models begin with them are about as good as guessing."""
    model = load_model(project / "base")
    model.set_attn_implementation(register())
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.02)
    vocabulary = model.config.vocab_size
    sample = Sample([1, *range(5, 60)], [-100, *range(5, 60)], 0)
    assert abs(loss_on(model, [sample]) - math.log(vocabulary)) < 0.1
    require_sound(model, tokenizers.load_tokenizer(project / "base"), [sample], "somewhere")
