"""What torch has pickled in a checkpoint: optimizer, schedule, loss scale, random states.

A checkpoint may come from somewhere else, sealed and all, and hold anything under these names. Read
are plain values and tensors alone (`weights_only`): no code that a pickle names is ever run. What
is taken must be of the kind that is here already.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from transformers.trainer_pt_utils import safe_globals

from slimtune.console import first_process, near
from slimtune.errors import InputError
from slimtune.machine.refusals import refusal_of
from slimtune.training import sharding

# Not the Trainer's own names: it would load what it finds under those, parts or not.
OPTIMIZER, SCHEDULE = "optimizer_state.pt", "schedule_state.pt"
_SCALER = "scaler.pt"  # the Trainer's own name: it loads this one back at the right moment
_RANDOM = "rng_state"  # the Trainer's too, one file a process
_OF_A_WEIGHT = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of its shape


class Stateful(Protocol):
    """An optimizer, a schedule or a gradient scaler: its state goes out and comes back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


def save_optimizer(
    optimizer: Stateful, schedule: Stateful, scaler: Stateful | None, folder: Path
) -> None:
    """Its state is whole in the file, however many processes hold a part of it."""
    state = sharding.gather_parts(optimizer.state_dict())
    if not first_process():
        return
    torch.save(state, folder / OPTIMIZER)
    torch.save(schedule.state_dict(), folder / SCHEDULE)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / _SCALER)


def load_optimizer(optimizer: torch.optim.Optimizer, schedule: Stateful, checkpoint: Path) -> None:
    """Optimizer and schedule as they were when `checkpoint` was written.

    Raises InputError where the file is that of another optimizer, schedule or model.
    """
    state, own = _read(checkpoint / OPTIMIZER), optimizer.state_dict()
    here = [one for group in optimizer.param_groups for one in group["params"]]
    if not _is_like(state, own | {"state": {}}) or not _fits(state, here):
        raise _of_another(checkpoint / OPTIMIZER)
    of_schedule = _read(checkpoint / SCHEDULE)
    if not _is_like(of_schedule, schedule.state_dict()):
        raise _of_another(checkpoint / SCHEDULE)
    optimizer.load_state_dict(sharding.scatter_optimizer_state(state, optimizer))
    schedule.load_state_dict(of_schedule)


def unreadable(checkpoint: Path, names: Iterable[str]) -> str | None:
    """The first of a checkpoint's files that should be torch's and is not; None if all are.

    Tensors are mapped, not read: the moments of a large model cost nothing here.
    """
    for name in names:
        if not name.endswith((".pt", ".pth")):
            continue
        try:
            state = _read(checkpoint / name, mmap=True)
            if name.startswith(_RANDOM):
                _try_random(state)
            elif not isinstance(state, dict):
                return name
        except Exception as error:  # torch, pickle, zip and numpy each have their own
            if refusal_of(error):
                raise
            return name
    return None


def _read(file: Path, *, mmap: bool = False) -> Any:
    # On the CPU first: whole, the moments of a sharded model may fit on no GPU.
    with safe_globals():  # numpy's random state is an array
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _try_random(state: dict[str, Any]) -> None:
    """Raises whatever a generator raises that cannot be set to it."""
    random.Random().setstate(state["python"])
    numpy.random.RandomState().set_state(state["numpy"])
    torch.Generator().set_state(state["cpu"])


def _is_like(read: Any, own: Any) -> bool:
    """Whether the same names hold values of the same kind; an empty dict takes any."""
    if isinstance(own, dict):
        if not isinstance(read, dict) or (own and read.keys() != own.keys()):
            return False
        return all(_is_like(read[name], value) for name, value in own.items())
    if isinstance(own, list | tuple):
        if not isinstance(read, list | tuple) or len(read) != len(own):
            return False
        return all(_is_like(one, other) for one, other in zip(read, own, strict=True))
    if isinstance(own, bool) or not isinstance(own, int | float | torch.Tensor):
        return type(read) is type(own)
    return _is_number(read)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(state: dict[str, Any], weights: list[torch.Tensor]) -> bool:
    """Whether each weight's moments are tensors of its shape, by the numbers of the groups."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, weight in zip(numbers, weights, strict=True):
        kept = state["state"].get(number, {})
        if not isinstance(kept, dict):
            return False
        for name, value in kept.items():
            if name in _OF_A_WEIGHT and getattr(value, "shape", None) != weight.shape:
                return False
            if name == "step" and not _is_number(value):
                return False
    return True


def _of_another(file: Path) -> InputError:
    return InputError(
        f"{near(file)}: not this run's",
        "its names, kinds or shapes are those of another optimizer, schedule or model",
        "start from nothing: --overwrite in place of --resume",
    )
