"""Rows that models were trained on: as the records of the stages name them, never as guessed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slimtune.artifacts import stage_files, stage_folder
from slimtune.config import Config, Options, Training
from slimtune.data.learned_rows import learned_by, with_rows_of


def config_of(train_data: Path, **flags: str) -> Config:
    config = Config(training=Training(train_data=train_data))
    config._options = replace(Options(), overwrite=True, flags=flags)
    return config


def prepared(folder: Path) -> Path:
    """Rows with their record, as prepare_data leaves them."""
    names = ("rows_train.jsonl", "rows_test.jsonl")
    turns = [{"role": "user", "content": folder.name}, {"role": "assistant", "content": "yes"}]
    outputs = [folder / name for name in names]
    config = config_of(outputs[0])
    with stage_files("prepare_data", folder / "rows_run.json", config, outputs=outputs) as stage:
        for name in names:
            (stage.folder / name).write_text(json.dumps({"messages": turns}), encoding="utf-8")
    return outputs[0]


def trained(folder: Path, rows: Path, *models: Path, stage: str = "train_lora") -> Path:
    with stage_folder(stage, folder, config_of(rows), inputs=[*models, rows]):
        pass
    return folder


@pytest.fixture
def world(tmp_path) -> dict[str, Path]:
    """base -> tuned on `first`; small, distilled from it on `second`; merged of both in between."""
    first, second = prepared(tmp_path / "a"), prepared(tmp_path / "b")
    tuned = trained(tmp_path / "tuned", first, tmp_path / "base")
    with stage_folder("evaluate_model", tmp_path / "merged", config_of(first), inputs=[tuned]):
        pass
    merged = tmp_path / "merged"
    small = trained(tmp_path / "small", second, merged, stage="knowledge_distillation")
    return {"first": first, "second": second, "tuned": tuned, "merged": merged, "small": small}


def test_the_union_over_all_that_led_to_the_models(world) -> None:
    assert learned_by(world["merged"]).files == (world["first"],)
    found = learned_by(world["small"], world["tuned"])
    assert found.files == (world["second"], world["first"]) and not found.gone
    assert [row["messages"][0]["content"] for row in found.rows()] == ["b", "a"]


def test_two_adapters_of_one_base_both_count(world, tmp_path) -> None:
    other = trained(tmp_path / "other", world["second"], tmp_path / "base")
    assert set(learned_by(world["tuned"], other).files) == {world["first"], world["second"]}


def test_a_model_without_a_record_has_learned_nothing_that_is_known(tmp_path) -> None:
    found = learned_by(tmp_path, tmp_path / "absent")
    assert (found.files, found.gone) == ((), ())


def test_what_is_gone_or_was_written_again_is_told(world, tmp_path) -> None:
    world["first"].unlink()
    assert learned_by(world["tuned"]).gone == (str(world["first"]),)
    prepared(tmp_path / "b")
    found = learned_by(world["small"])
    assert set(found.gone) == {str(world["first"]), str(world["second"])} and not found.files


def test_rows_follow_the_model_unless_the_command_line_names_some(world, tmp_path) -> None:
    project = tmp_path / "project_train.jsonl"
    settings = config_of(project)
    assert with_rows_of(settings, world["merged"]).training.train_data == world["first"]
    assert with_rows_of(settings, None, world["small"]).training.train_data == world["second"]
    assert with_rows_of(settings, tmp_path / "base").training.train_data == project
    named = config_of(project, **{"training.train_data": "x"})
    assert with_rows_of(named, world["merged"]).training.train_data == project


def test_a_teachers_answers_lead_to_the_rows_with_test_rows_beside_them(world, tmp_path) -> None:
    answers = tmp_path / "answers"
    config = config_of(world["second"])
    with stage_folder("teacher_answers", answers, config, inputs=[world["second"]]) as stage:
        (stage.folder / "rows_train.jsonl").write_text("{}", encoding="utf-8")
    student = trained(
        tmp_path / "student", answers / "rows_train.jsonl", stage="knowledge_distillation"
    )
    assert learned_by(student).files == (answers / "rows_train.jsonl", world["second"])
    found = with_rows_of(config_of(tmp_path / "x_train.jsonl"), student)
    assert found.training.train_data == world["second"]
