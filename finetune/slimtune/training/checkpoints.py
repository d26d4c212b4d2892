"""Checkpoints of a training run: written whole or not at all, checked before they are taken.

    checkpoint-N.partial -> manifest with the SHA-256 of every file -> fsync -> rename
    -> only then the older ones go, but for the best

A checkpoint holds adapter or model, optimizer, schedule, the random states of Python, numpy, torch
and CUDA, the position in the data, best loss and patience. Beside them lie the conditions it was
made under: settings, rows, base. Another run is not continued.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerState

from slimtune.artifacts import not_without_overwrite
from slimtune.artifacts.files import (
    are_sealed,
    broken,
    clear,
    flush,
    json_or_none,
    seal,
    write_json,
)
from slimtune.config import Config
from slimtune.console import first_process, near, size
from slimtune.errors import InputError, SettingsError
from slimtune.machine import disks
from slimtune.machine.moving import move
from slimtune.training import saved_states

_log = logging.getLogger(__name__)

STATE = "trainer_state.json"
CHECKPOINT_MANIFEST = "checkpoint.json"
_NUMBER = (int, float)
_NAMED = 5  # folders in an error
_KEPT = 2  # the newest and the best
_PICKLED_ARGUMENTS = "training_args.bin"  # the Trainer writes it, nothing reads it


@contextmanager
def new_checkpoint(
    folder: Path, state: TrainerState, finished: bool, wait: Callable[[], None]
) -> Iterator[Path]:
    """The folder that this step's checkpoint is written into; whole under its name at the end.

    Every process takes part and `wait`s for the others; the first one owns the files. `finished`
    says that the run is at its end.
    """
    final = checkpoint_of(folder, state.global_step)
    partial = final.with_name(final.name + ".partial")
    if first_process():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    yield partial
    wait()
    if first_process():
        (partial / _PICKLED_ARGUMENTS).unlink(missing_ok=True)
        state.save_to_json(str(partial / STATE))
        seal_as(partial, final, {"step": state.global_step, "finished": finished})
        _remove_others(folder, {final.name, checkpoint_of(folder, state.best_global_step).name})
    wait()


def checkpoint_of(folder: Path, step: int | None) -> Path:
    """Where the checkpoint of a step lies, or would lie."""
    return folder / f"checkpoint-{step}"


def find_best(state: TrainerState, folder: Path) -> None:
    """Where the best checkpoint is now: the folder may have moved since it was written."""
    best = checkpoint_of(folder, state.best_global_step)
    state.best_model_checkpoint = str(best) if best.is_dir() else None


def load_weights(model: PreTrainedModel | PeftModel, checkpoint: Path) -> None:
    """What a checkpoint holds of the model: its adapter, or all of its weights, file by file."""
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), model.active_adapter, is_trainable=True)
        return
    for file in sorted(checkpoint.glob("*.safetensors")):
        model.load_state_dict(load_file(file), strict=False)


def seal_as(partial: Path, final: Path, facts: dict[str, Any]) -> None:
    """Give a written folder its name: whole, on the disk, with a manifest of `facts`."""
    files = seal(partial, without=CHECKPOINT_MANIFEST)
    write_json(partial / CHECKPOINT_MANIFEST, facts | {"files": files})
    flush(partial)
    clear(final)  # a broken one that a resumed run has passed over
    move(partial, final)
    flush(final.parent)


def _remove_others(folder: Path, kept: set[str]) -> None:
    for other in folder.glob("checkpoint-*"):
        if other.name not in kept:
            shutil.rmtree(other, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The checkpoints under their final names, oldest first; not yet checked."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    whole = [path for path, step in steps.items() if step.isascii() and step.isdecimal()]
    return sorted(whole, key=lambda path: int(steps[path]))


def to_resume(folder: Path, conditions: Mapping[str, str]) -> Path | None:
    """The newest whole checkpoint in `folder`, None (and a word) for a run that has none yet.

    Broken ones are named and passed over; InputError where none is whole. Raises SettingsError
    naming every condition (setting, rows, base) that is not what it was when it was made.
    """
    checkpoints = found(folder)
    for checkpoint in reversed(checkpoints):
        fault = _fault(checkpoint)
        if fault is None:
            require_same(folder, conditions)
            _log.info("resuming from %s", near(checkpoint))
            return checkpoint
        _log.warning("%s: not whole (%s), passed over", near(checkpoint), fault)
    if checkpoints:
        names = ", ".join(one.name for one in checkpoints)
        raise InputError(
            f"{near(folder)}: none of its checkpoints is whole ({names})",
            "going on would be starting from nothing",
            _elsewhere(folder) or "start from nothing: --overwrite in place of --resume",
        )
    _log.info("%s: stopped before its first checkpoint, starting at step 0", near(folder))
    return None


def require_begun(config: Config, folders: Sequence[Path]) -> None:
    """Raises SettingsError for --resume where no run of these folders of checkpoints was stopped;
    a dry run is told."""
    options = config.options
    if not options.resume or options.overwrite:
        return
    if any((folder / _CONDITIONS).exists() or found(folder) for folder in folders):
        return
    nothing = SettingsError(
        f"{near(folders[0])}: nothing to resume, no run was stopped here",
        "--resume goes on where a stopped run of the same output ended",
        _elsewhere(folders[0]) or "start it: the same command without --resume",
    )
    not_without_overwrite(nothing, config, "to be started without --resume")


def _elsewhere(folder: Path) -> str:
    """Which folders near by have whole checkpoints, as a cure; "" where none has."""
    near_by = {*folder.parent.glob("*checkpoints"), *folder.parent.parent.glob("*/*checkpoints")}
    others = [one for one in sorted(near_by - {folder}) if any(not _fault(c) for c in found(one))]
    if not others:
        return ""
    named = ", ".join(map(near, others[:_NAMED]))
    return f"name the output of the run that was stopped; there are checkpoints in {named}"


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: the first file that is not as it was written."""
    manifest = json_or_none(checkpoint / CHECKPOINT_MANIFEST)
    if manifest is None:
        return f"{CHECKPOINT_MANIFEST} is missing or unreadable"
    files = manifest.get("files")
    needed = {saved_states.OPTIMIZER, saved_states.SCHEDULE}
    if not are_sealed(files) or not needed <= files.keys():
        return f"{CHECKPOINT_MANIFEST} is not what this version of SlimTune writes"
    changed = broken(checkpoint, files)
    if changed is not None:
        return f"{changed} is missing or damaged"
    foreign = saved_states.unreadable(checkpoint, files)
    if foreign is not None:
        return f"{foreign} is not what torch saves"
    if not _is_state(json_or_none(checkpoint / STATE), manifest.get("step")):
        return f"{STATE} is not what the Trainer writes"
    return None


def _is_state(state: dict[str, Any] | None, step: object) -> bool:
    """Whether going on can count on it: the Trainer's own names, each with a value of its kind.

    A folder from somewhere else may be sealed and hold anything.
    """
    fresh = vars(TrainerState())
    if state is None or not state.keys() <= fresh.keys() or state.get("global_step") != step:
        return False
    for name, value in state.items():
        usual, plain = fresh[name], value is None or isinstance(value, _NUMBER)
        number = isinstance(value, _NUMBER) and value is not True
        told = isinstance(value, type(usual)) or (isinstance(usual, _NUMBER) and number)
        if not (told if usual is not None else plain or isinstance(value, str | dict)):
            return False
    best, history = state.get("best_metric"), state.get("log_history", [])
    told = (state.get("stateful_callbacks") or {}).values()
    return (
        (best is None or isinstance(best, _NUMBER))
        and isinstance(history, list)
        and all(_is_entry(entry) for entry in history)
        and all(_is_callback(one) for one in told)
    )


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return False
    return all(isinstance(value, _NUMBER) for value in entry.values())


def _is_callback(told: object) -> bool:
    if not isinstance(told, dict):
        return False
    parts = [told.get("args", {}), told.get("attributes", {})]
    return all(isinstance(part, dict) for part in parts) and all(
        value is None or isinstance(value, _NUMBER) for part in parts for value in part.values()
    )


def finished(checkpoint: Path) -> bool:
    """Whether the run that wrote it had come to its end: only its result was not written yet."""
    manifest = json_or_none(checkpoint / CHECKPOINT_MANIFEST)
    return manifest is not None and manifest.get("finished") is True


def history(checkpoint: Path) -> list[dict[str, float]]:
    """What was logged up to a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / STATE)).log_history


_CONDITIONS = "conditions.json"


def begin(folder: Path, conditions: Mapping[str, str]) -> None:
    """Make the folder of a new run's checkpoints, with the conditions it runs under."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / _CONDITIONS, dict(conditions))


def conditions_of(folder: Path) -> dict[str, str]:
    """The conditions that the checkpoints of `folder` were made under; empty without any."""
    read = json_or_none(folder / _CONDITIONS) or {}
    return {name: value for name, value in read.items() if isinstance(value, str)}


def require_same(folder: Path, conditions: Mapping[str, str]) -> None:
    """SettingsError naming every condition that is not what the run in `folder` was begun under."""
    before = conditions_of(folder)
    names = [name for name in {**before, **conditions} if before.get(name) != conditions.get(name)]
    if names:
        said = "; ".join(
            f"{n} was {before.get(n, 'unset')}, now {conditions.get(n)}" for n in names
        )
        raise SettingsError(
            f"{near(folder)}: this run is not the one that was stopped: {said}",
            "going on would make something that neither settings nor rows describe",
            "set it back to go on with --resume, or start from nothing with --overwrite",
        )


def require_space(folder: Path, one: int) -> None:
    """ResourceError unless the disk has room for the checkpoints kept and one being written."""
    why = f"of checkpoints {_KEPT} are kept ({size(one)} each) while the next is written"
    disks.require_space(folder, (_KEPT + 1) * one, why)
