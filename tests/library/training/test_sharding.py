"""What weights that lie in parts do not allow is refused before anything is loaded."""

import pytest
import torch
from running import refused

from slimtune.training import sharding


@pytest.fixture
def two_parts(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--use-quantization", "nf4"], "model.quantization: nf4"),
        (["--dora"], "lora.dora"),
        (["--lora-init", "pissa"], "lora.initialisation: pissa"),
        (["--modules-to-save", "lm_head"], "lora.modules_to_save"),
        (["--lora-target-modules", "q_proj,lm_head"], "lora.target_modules: lm_head"),
        (["--method", "full", "--optimizer", "adafactor"], "training.optimizer: adafactor"),
    ],
)
def test_choices_that_need_whole_weights(two_parts, words, named, settings, tmp_path) -> None:
    where = ("--output-dir", tmp_path)
    refused(2, f"{named} under FSDP", "train_lora", *settings, *where, *words)


def test_a_student_is_asked_about_as_well(two_parts, settings, rows, pruned, tmp_path) -> None:
    words = ("--output-dir", tmp_path, "--optimizer", "adamw_8bit")
    refused(2, "training.optimizer", "knowledge_distillation", *settings, *words)


def test_what_a_launcher_asks_beyond_is_not_passed_over(
    two_parts, settings, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    words = ("--output-dir", tmp_path)
    refused(2, "fsdp_offload_params is not false", "train_lora", *settings, *words)


def test_gpus_would_take_what_is_meant_for_the_cpu(
    two_parts, monkeypatch, settings, tmp_path
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    refused(2, "CUDA_VISIBLE_DEVICES=", "train_lora", *settings, "--output-dir", tmp_path)


def test_one_process_holds_everything(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding.weight_parts() == 1
