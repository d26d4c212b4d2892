"""`auto`: the sample's teacher for the sample's vocabulary, else the model before pruning."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_folders import swap_two_tokens, write_tiny_llama

from slimtune.artifacts import stage_folder
from slimtune.config import Config, SampleSection
from slimtune.errors import InputError
from slimtune.training.auto_teacher import with_teacher


@pytest.fixture
def world(tmp_path) -> Config:
    """A sample's teacher and text, a model of another vocabulary, and one that was pruned of it."""
    write_tiny_llama(tmp_path / "models/sample/teacher")
    write_tiny_llama(tmp_path / "whole")
    swap_two_tokens(tmp_path / "whole")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample_text.txt").write_text("One.\n", encoding="utf-8")
    folders = {"output_dir": tmp_path / "data", "models_dir": tmp_path / "models/sample"}
    config = Config(sample=SampleSection(**folders))
    with stage_folder(
        "model_pruning", tmp_path / "pruned", config, inputs=[tmp_path / "whole"]
    ) as stage:
        shutil.copytree(tmp_path / "whole", stage.folder, dirs_exist_ok=True)
    return config


def taught(config: Config, student: Path, **more: str) -> tuple[str, Path | None]:
    chosen = with_teacher(config, str(student), **more).distillation
    return chosen.teacher_model, chosen.text_data


def test_the_sample_is_taught_by_the_samples_teacher(world, tmp_path) -> None:
    write_tiny_llama(tmp_path / "student")
    text = tmp_path / "data/sample_text.txt"
    assert taught(world, tmp_path / "student") == (str(tmp_path / "models/sample/teacher"), text)


def test_another_vocabulary_is_taught_by_the_model_before_pruning(world, tmp_path) -> None:
    assert taught(world, tmp_path / "pruned") == (str(tmp_path / "whole"), None)
    shutil.rmtree(tmp_path / "models/sample")  # nor is the sample needed
    assert taught(world, tmp_path / "pruned") == (str(tmp_path / "whole"), None)


def test_the_combined_run_knows_the_model_before_pruning(world, tmp_path) -> None:
    whole = tmp_path / "whole"
    assert taught(world, whole, unpruned=str(whole)) == (str(whole), None)


def test_where_nobody_is_known_it_asks_for_a_name(world, tmp_path) -> None:
    with pytest.raises(InputError, match="who teaches it") as caught:
        taught(world, tmp_path / "whole")
    assert "no record of being pruned" in caught.value.why
    shutil.rmtree(tmp_path / "whole")
    with pytest.raises(InputError, match="who teaches it") as caught:
        taught(world, tmp_path / "pruned")
    assert "not there any more" in caught.value.why


def test_a_name_stays_what_it_is(world, tmp_path) -> None:
    named = {"teacher_model": str(tmp_path / "whole"), "text_data": None}
    settings = world.distillation.model_copy(update=named)
    config = world.model_copy(update={"distillation": settings})
    write_tiny_llama(tmp_path / "student")
    assert taught(config, tmp_path / "student") == (str(tmp_path / "whole"), None)


def test_a_named_teacher_of_another_vocabulary_brings_no_text_of_the_samples(
    world, tmp_path
) -> None:
    named = {"teacher_model": str(tmp_path / "whole")}
    config = world.model_copy(update={"distillation": world.distillation.model_copy(update=named)})
    assert taught(config, tmp_path / "pruned") == (str(tmp_path / "whole"), None)
    record = json.loads((tmp_path / "pruned/run.json").read_text())
    assert record["stage"] == "model_pruning"
