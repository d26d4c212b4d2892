"""What `auto` means in a run, once model, rows and machine are known: rate, batch, epochs ...

Each choice is said in one line with its reason, and recorded in place of the word. A rate of the
user's own that is far from usual gets a word as well.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from accelerate.utils import broadcast_object_list

from slimtune.config import Config, Training
from slimtune.config.training import AUTO_ROWS, ENOUGH_UPDATES
from slimtune.console import processes
from slimtune.errors import ResourceError
from slimtune.models import memory
from slimtune.settings.flags import named, shown
from slimtune.training import sharding, streaming
from slimtune.training.estimates import Run, largest_batch
from slimtune.training.fitting import steps_per_epoch
from slimtune.training.rates import is_far, usual_rate

_log = logging.getLogger(__name__)
_FEW_UPDATES = 30  # SmolLM2-135M on 54 rows had not learned one of their facts after 8
_EPOCHS, _MOST_EPOCHS = 2, 20  # of many rows, and of a dozen


def settled(
    config: Config, run: Run, recorded: Mapping[str, str] | None = None
) -> tuple[Config, Run]:
    """The settings with a value for every `auto` that the run reads, and the run under them.

    `recorded` are the conditions of a stopped run that goes on: what it had settled on stays.
    Raises ResourceError where not even one row a step fits into memory; a dry run, which shows just
    that, takes one.
    """
    config = _as_recorded(config, run, recorded or {})
    config, run = streaming.settled(_with_rate(config, run), run, available_for(run))
    config, run = _within_memory(config, run)
    config = _with_epochs(config, run)
    _tell_few_updates(config, run)
    return config, run


def usual_for(config: Config, run: Run) -> tuple[float, str]:
    """The usual learning rate, and in words for what."""
    adapter = run.recipe.trained is not None
    size = memory.ModelShape.of(run.shapes).parameters
    rate = usual_rate(
        size,
        adapter=adapter,
        optimizer=run.recipe.optimizer,
        loraplus_ratio=config.lora.loraplus_ratio,
        through_a_file=run.through_a_file,
    )
    learns = "an adapter on" if adapter else "all weights of"
    through = " through the types of a file" if run.through_a_file else ""
    return rate, f"{learns} {_millions(size)} parameters{through}"


def _with_rate(config: Config, run: Run) -> Config:
    given = getattr(config, run.section).learning_rate
    usual, what = usual_for(config, run)
    if given == "auto":
        _log.info("learning rate auto: %g, usual for %s", usual, what)
        return _changed(config, run.section, learning_rate=usual)
    if is_far(given, usual):
        flag = named(f"{run.section}.learning_rate")
        _log.warning("caution: %s %g is far off: %g is usual for %s", flag, given, usual, what)
    return config


def _with_epochs(config: Config, run: Run) -> Config:
    """_EPOCHS where they make enough updates; of few rows as many as do, within reason."""
    if getattr(config, run.section).epochs != "auto":
        return config
    rows = len(run.lengths)
    epoch = steps_per_epoch(rows, config.training)
    chosen = min(max(_EPOCHS, -(-ENOUGH_UPDATES // epoch)), _MOST_EPOCHS)
    why = "usual" if chosen == _EPOCHS else f"{_EPOCHS} are few for {_rows(rows)}"
    _log.info("epochs auto: %d, %s; %d updates of the weights", chosen, why, chosen * epoch)
    return _changed(config, run.section, epochs=float(chosen))


def _tell_few_updates(config: Config, run: Run) -> None:
    """A caution before a training on few rows that is over before the model has learned them."""
    epoch = steps_per_epoch(len(run.lengths), config.training)
    updates = math.ceil(epoch * getattr(config, run.section).epochs)
    epochs = -(-ENOUGH_UPDATES // epoch)
    if updates < _FEW_UPDATES:
        _log.warning(
            "caution: %d update%s of the weights may be too few to learn %s; "
            "with %d as %s they are %d",
            *(updates, "" if updates == 1 else "s", _rows(len(run.lengths))),
            *(epochs, named(f"{run.section}.epochs"), epochs * epoch),
        )


def _within_memory(config: Config, run: Run) -> tuple[Config, Run]:
    """Numbers for batch and checkpointing: checkpointing only where a step does not fit without.

    AUTO_ROWS rows times gradient_accumulation_steps go into one update whatever the memory: the
    micro-batch is the largest of AUTO_ROWS, its half, its quarter ... that fits, and the
    accumulation grows in return.
    """
    settings = config.training
    if "auto" not in (settings.batch_size, settings.activation_checkpointing):
        return config, run
    chosen = _agreed(_chosen(settings, run, config.options.dry_run), run.recipe.device)
    config = _changed(config, "training", **chosen)
    return config, _checkpointed(run, chosen["activation_checkpointing"])


def _chosen(settings: Training, run: Run, dry: bool) -> dict[str, Any]:
    available = available_for(run)
    free = memory.gigabytes(available)
    wanted = 1 if settings.batch_size == "auto" else settings.batch_size
    checkpointing = settings.activation_checkpointing
    if checkpointing == "auto":
        taken = run.needs(wanted)
        checkpointing = not memory.fits(taken, available)
        run = _checkpointed(run, checkpointing)
        _log.info(
            "activation checkpointing auto: %s; %s a step would take about %s of %s without",
            *("on" if checkpointing else "off", _rows(wanted)),
            *(memory.gigabytes(taken.total), free),
        )
    if settings.batch_size != "auto":
        return {"activation_checkpointing": checkpointing}
    most = largest_batch(run, available)
    if not most and not dry:
        raise _does_not_fit(run, available)
    rows = AUTO_ROWS
    while rows > max(1, most) and most < len(run.lengths):
        rows //= 2
    steps = settings.gradient_accumulation_steps * AUTO_ROWS // rows
    _log.info(
        "batch size auto: %s a step x %d accumulated = %d rows an update; about %s of %s",
        *(_rows(rows), steps, rows * steps, memory.gigabytes(run.needs(rows).total), free),
    )
    return {
        "activation_checkpointing": checkpointing,
        "batch_size": rows,
        "gradient_accumulation_steps": steps,
    }


def available_for(run: Run) -> int:
    """Bytes free for this process: processes on one machine share its RAM, each has its own GPU."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if run.recipe.device == "cpu" else 1
    return memory.available_memory(run.recipe.device) // sharing


def _does_not_fit(run: Run, available: int) -> ResourceError:
    ways = [f"add {flag}" for flag in shown("model.quantization")]
    ways += [f"lower {named('training.max_length')}", "take a smaller model"]
    if not run.recipe.streamed and streaming.would_fit(run, available):
        ways.insert(0, f"set {named('training.stream_base')} to auto")
    if run.through_a_file:
        ways.insert(0, "let its layers learn one after another with --student layers")
        ways.append("let the encoder alone make the file with convert_to_gguf.py --target-size")
    return ResourceError(
        f"training.batch_size auto: not even one row fits into {memory.gigabytes(available)}",
        f"it would take about {run.needs(1)}",
        f"{', '.join(ways)}, or try it all the same: {named('training.batch_size')} 1",
    )


def _agreed(chosen: dict[str, Any], device: str) -> dict[str, Any]:
    """The first process's choice: what is free changes from moment to moment, and all must share
    one number of steps."""
    if processes() == 1:
        return chosen
    sharding.joined(device)
    return broadcast_object_list([chosen])[0]


def _as_recorded(config: Config, run: Run, recorded: Mapping[str, str]) -> Config:
    """`auto` as it had been settled; the batch only if its update is as large as auto's now."""
    for name in ("learning_rate", "epochs"):
        value = _number(recorded, f"{run.section}.{name}")
        if getattr(getattr(config, run.section), name) == "auto" and value:
            config = _changed(config, run.section, **{name: value})
    settings = config.training
    rows = _number(recorded, "training.batch_size")
    steps = _number(recorded, "training.gradient_accumulation_steps") or 1
    update = AUTO_ROWS * settings.gradient_accumulation_steps
    if settings.batch_size == "auto" and rows and rows * steps == update:
        chosen = {"batch_size": rows, "gradient_accumulation_steps": steps}
        config = _changed(config, "training", **chosen)
    return config


def _number(recorded: Mapping[str, str], name: str) -> float | int | None:
    """A positive number that a stopped run had settled on; what else stands there is none."""
    try:
        value = json.loads(recorded.get(name, ""))
    except ValueError:
        return None
    return value if type(value) in (int, float) and 0 < value < math.inf else None


def _checkpointed(run: Run, on: bool) -> Run:
    return replace(run, recipe=replace(run.recipe, activation_checkpointing=on))


def _changed(config: Config, section: str, **values: Any) -> Config:
    before = getattr(config, section)
    return config.model_copy(update={section: before.model_copy(update=values)})


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _millions(parameters: int) -> str:
    """2,524,928 as 2.5 M, 6,738,415,616 as 6.7 B."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
