"""What a run does without is not imported; what it asks for is there."""

import pytest
from running import imported_by

from slimtune.config import Config
from slimtune.machine.unused_packages import unused

ADAPTER = ("--epochs", 1, "--lora-r", 2)


def with_settings(section: str, **settings: str) -> Config:
    return Config.model_validate({section: settings})


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (Config(), {"datasets", "bitsandbytes"}),
        (with_settings("training", optimizer="adafactor"), {"datasets", "bitsandbytes"}),
        (with_settings("training", optimizer="paged_adamw_32bit"), {"datasets"}),
        (with_settings("training", optimizer="lion_8bit"), {"datasets"}),
        (with_settings("model", quantization="int8"), {"datasets"}),
        (with_settings("distillation", teacher_quantization="nf4"), {"datasets"}),
    ],
)
def test_bitsandbytes_stays_where_weights_or_optimizer_are_its_own(config, left_out) -> None:
    assert unused(config) == left_out


def test_training_as_usual_imports_neither_bitsandbytes_nor_pandas(
    settings, rows, tmp_path
) -> None:
    there = imported_by("train_lora", *settings, *ADAPTER, "--output-dir", tmp_path / "out")
    assert {"peft", "transformers.trainer"} <= there
    assert not there & {"bitsandbytes", "datasets", "pandas", "pyarrow"}


@pytest.mark.parametrize("flags", [("--use-quantization",), ("--optimizer", "adamw_8bit")])
def test_training_that_needs_bitsandbytes_has_it(flags, settings, rows, tmp_path) -> None:
    words = (*settings, *ADAPTER, *flags, "--output-dir", tmp_path / "out")
    assert "bitsandbytes" in imported_by("train_lora", *words)
