"""Checkpoints from a folder that somebody else has packed, and sealed: passed over or refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from running import refused
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState

from slimtune.artifacts.files import seal
from slimtune.errors import InputError
from slimtune.training import checkpoints, saved_states

pytestmark = pytest.mark.faults

STATE = vars(TrainerState(global_step=3, log_history=[{"step": 3, "loss": 1.0}]))


def sealed(folder: Path, state: object, **more: object) -> Path:
    """A folder with a checkpoint whose every byte is as its manifest says; `more` is pickled, or
    written where it is bytes."""
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for name, content in ({"optimizer_state.pt": {}, "schedule_state.pt": {}} | more).items():
        torch.save(content, checkpoint / name)
        if isinstance(content, bytes):
            (checkpoint / name).write_bytes(content)
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


class Hostile:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def of_generators(**changes: object) -> dict[str, object]:
    return {
        "python": random.Random(1).getstate(),
        "numpy": numpy.random.RandomState(1).get_state(),
        "cpu": torch.Generator().get_state(),
    } | changes


@pytest.mark.parametrize("name", ["optimizer_state.pt", "schedule_state.pt", "rng_state_0.pth"])
@pytest.mark.parametrize("content", ["hostile", b"", b"x" * 99, b"PK\x03\x04" * 9, [1], "text"])
def test_what_torch_cannot_load_is_passed_over_and_runs_nothing(
    name, content, tmp_path, caplog
) -> None:
    if content == "hostile":
        content = {"state": Hostile(tmp_path / "CANARY")}
    sealed(tmp_path, STATE, **{name: content})
    with pytest.raises(InputError, match="none of its checkpoints is whole"):
        checkpoints.to_resume(tmp_path, {})
    assert f"{name} is not what torch saves" in caplog.text
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    "changes",
    [{"python": 3}, {"python": (3, (1,), None)}, {"numpy": ["MT19937", 3]}, {"cpu": None},
     {"cpu": torch.zeros(3)}],
    ids=str,
)  # fmt: skip
def test_random_states_that_no_generator_takes_are_passed_over(changes, tmp_path) -> None:
    sealed(tmp_path / "good", STATE, **{"rng_state.pth": of_generators()})
    assert checkpoints.to_resume(tmp_path / "good", {}) == tmp_path / "good/checkpoint-3"
    sealed(tmp_path / "bad", STATE, **{"rng_state.pth": of_generators(**changes)})
    with pytest.raises(InputError):
        checkpoints.to_resume(tmp_path / "bad", {})


def learner(*sizes: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """An optimizer that has made a step, and its schedule."""
    weights = [torch.nn.Parameter(torch.ones(size, 2)) for size in sizes]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    sum(weight.square().sum() for weight in weights).backward()
    optimizer.step()
    schedule.step()
    return optimizer, schedule


def test_an_optimizer_and_its_schedule_come_back(tmp_path) -> None:
    optimizer, schedule = learner(3, 4)
    saved_states.save_optimizer(optimizer, schedule, None, tmp_path)
    fresh = torch.optim.AdamW(optimizer.param_groups[0]["params"], lr=0.1)
    schedule_again = LambdaLR(fresh, lambda step: 1 / (1 + step))
    saved_states.load_optimizer(fresh, schedule_again, tmp_path)
    assert str(fresh.state_dict()) == str(optimizer.state_dict())
    assert schedule_again.state_dict() == schedule.state_dict()


def group(state: dict[str, Any]) -> dict[str, Any]:
    return state["param_groups"][0]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("optimizer_state.pt", lambda state: state.clear()),
        ("optimizer_state.pt", lambda state: state.update(param_groups=[])),
        ("optimizer_state.pt", lambda state: state.update(state=[1])),
        ("optimizer_state.pt", lambda state: state["state"].update({0: 7})),
        ("optimizer_state.pt", lambda state: state["state"][0].update(step="x")),
        ("optimizer_state.pt", lambda state: state["state"][0].update(exp_avg=torch.ones(5))),
        ("optimizer_state.pt", lambda state: state["state"][0].update(exp_avg=None)),
        ("optimizer_state.pt", lambda state: group(state).update(betas="xx")),
        ("optimizer_state.pt", lambda state: group(state).update(params=[0])),
        ("optimizer_state.pt", lambda state: group(state).pop("lr")),
        ("schedule_state.pt", lambda state: state.update(step=1)),
        ("schedule_state.pt", lambda state: state.update(base_lrs=["x"])),
        ("schedule_state.pt", lambda state: state.update(last_epoch=None)),
    ],
)
def test_another_runs_optimizer_is_refused(
    file: str, change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    """Its names would be set on ours, and fail a step later as a bug of ours."""
    optimizer, schedule = learner(3, 4)
    saved_states.save_optimizer(optimizer, schedule, None, tmp_path)
    state = torch.load(tmp_path / file, weights_only=True)
    change(state)
    torch.save(state, tmp_path / file)
    with pytest.raises(InputError, match=f"{file}: not this run's"):
        saved_states.load_optimizer(optimizer, schedule, tmp_path)


def test_an_optimizer_of_other_weights_is_refused(tmp_path: Path) -> None:
    saved_states.save_optimizer(*learner(3, 4), None, tmp_path)
    for sizes in ((3, 5), (3,), (3, 4, 5)):
        with pytest.raises(InputError, match="not this run's"):
            saved_states.load_optimizer(*learner(*sizes), tmp_path)
