"""Checkpoints from a folder that somebody else has packed, and sealed: passed over or refused."""

import json
from pathlib import Path

import pytest
from running import refused
from transformers import TrainerState

from slimtune.artifacts.files import seal
from slimtune.training import checkpoints

pytestmark = pytest.mark.faults

STATE = vars(TrainerState(global_step=3, log_history=[{"step": 3, "loss": 1.0}]))


def sealed(folder: Path, state: object) -> Path:
    """A folder with a checkpoint whose every byte is as its manifest says."""
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer_state.pt").write_bytes(b"x")
    (checkpoint / checkpoints.STATE).write_text(json.dumps(state), encoding="utf-8")
    manifest = {"step": 3, "finished": False, "files": seal(checkpoint, without="checkpoint.json")}
    (checkpoint / "checkpoint.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "state",
    [
        1e308,
        [],
        {},
        STATE | {"global_step": "3"},
        STATE | {"global_step": 4},
        STATE | {"unknown": 1},
        STATE | {"log_history": {"a": 1}},
        STATE | {"log_history": [3]},
        STATE | {"log_history": [{"loss": 1.0}]},
        STATE | {"log_history": [{"step": 1, "loss": "x"}]},
        STATE | {"best_metric": [1]},
        STATE | {"max_steps": None},
        STATE | {"stateful_callbacks": {"TrainerControl": 3}},
        STATE | {"stateful_callbacks": {"TrainerControl": {"attributes": {"should_save": []}}}},
    ],
    ids=str,
)
def test_a_state_that_is_none_is_passed_over(state, settings, rows, tmp_path) -> None:
    sealed(tmp_path / "out/checkpoints", state)
    words = ("--output-dir", tmp_path / "out", "--resume", "--dry-run")
    refused(3, "none of its checkpoints is whole", "train_lora", *settings, *words)


def test_a_state_of_the_trainers_own_is_taken(tmp_path) -> None:
    assert checkpoints.to_resume(sealed(tmp_path, STATE), {}) == tmp_path / "checkpoint-3"


@pytest.mark.parametrize("value", [3, [1], None, "x", "[1]", "-1", "NaN", "true", "1e999"], ids=str)
def test_conditions_of_no_kind_are_those_of_another_run(value, settings, rows, tmp_path) -> None:
    folder = sealed(tmp_path / "out/checkpoints", STATE)
    names = ("training.learning_rate", "training.batch_size", "lora.rank")
    (folder / "conditions.json").write_text(json.dumps(dict.fromkeys(names, value)))
    words = ("--output-dir", tmp_path / "out", "--resume", "--dry-run")
    words += ("--learning-rate", "auto", "--batch-size", "auto")
    refused(2, "this run is not the one that was stopped", "train_lora", *settings, *words)
