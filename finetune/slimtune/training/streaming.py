"""Whether a run leaves its base in the files and reads it layer by layer, and what that costs.

    bytes of a batch = layers there + output layer + layers back = about 2 * the model

whatever the batch holds: the more tokens, the less each pays. How a streamed model computes is in
`models.streamed`.
"""

import logging
import math
from dataclasses import replace
from typing import Any

from slimtune.config import Config
from slimtune.machine.disks import read_speed
from slimtune.models import memory
from slimtune.models.folders import weight_files
from slimtune.models.weights import Checkpoint
from slimtune.settings.flags import named
from slimtune.training.estimates import Run
from slimtune.training.streamable import SETTING

_log = logging.getLogger(__name__)


def settled(config: Config, run: Run, available: int) -> tuple[Config, Run]:
    """With true or false in place of auto, and the run as it is then: true only where not even one
    row fits into `available` bytes beside the whole model."""
    asked = config.training.stream_base
    on = run.streams if asked == "auto" else asked and run.streams
    if asked == "auto":
        held = _with(run, activation_checkpointing=True).needs(1)
        on = on and not memory.fits(held, available)
        on = on and would_fit(run, available)
    if on:
        run = _with(run, streamed=True)
        why = "as set" if asked is True else _why(held, available)
        _log.info("stream base: on, %s; the layers are read from their files twice a batch", why)
    chosen: dict[str, Any] = {"stream_base": bool(on)}
    if on:
        chosen["activation_checkpointing"] = False  # each streamed layer is checkpointed by itself
    training = config.training.model_copy(update=chosen)
    return config.model_copy(update={"training": training}), run


def would_fit(run: Run, available: int) -> bool:
    """Whether one row of a run that may stream fits into `available` bytes if it does."""
    return run.streams and memory.fits(_with(run, streamed=True).needs(1), available)


def _why(held: memory.MemoryEstimate, available: int) -> str:
    return (
        f"one row beside the whole model would take about {memory.gigabytes(held.total)} of "
        f"{memory.gigabytes(available)}"
    )


def _with(run: Run, **changes: Any) -> Run:
    return replace(run, recipe=replace(run.recipe, **changes))


def bytes_of_a_batch(run: Run) -> int:
    """What forward and backward of one batch read of the files.

    The two layers that the backward pass ends with are there for the next forward; the one that it
    begins with is still there from the forward, unless the output layer took its place.
    """
    shape = memory.ModelShape.of(run.shapes)
    output = shape.vocabulary * shape.hidden
    layers = 2 * shape.layers - 3 + (output > shape.layer_parameters)
    checkpoint = Checkpoint(run.base)
    each = checkpoint.bytes / sum(math.prod(size) for size in checkpoint.shapes.values())
    return round((layers * shape.layer_parameters + output) * each)


def dry_lines(run: Run, rows: int, available: int) -> dict[str, str]:
    """What --dry-run says of streaming: its price where it is on, and that it is there where the
    model does not fit without."""
    if run.recipe.streamed:
        return {"streaming": _price(run, rows)}
    if memory.fits(run.needs(rows), available) or not would_fit(run, available):
        return {}
    streamed = _with(run, streamed=True)
    needed = memory.fit_verdict(streamed.needs(rows), available)
    return {f"with {named(SETTING)} true": f"{needed}; {_price(streamed, rows)}"}


def _price(run: Run, rows: int) -> str:
    size, speed = bytes_of_a_batch(run), read_speed(weight_files(run.base)[0])
    tokens = sum(run.lengths[:rows])
    return (
        f"every batch reads {memory.gigabytes(size)}, {size / speed:.1f} s at the "
        f"{speed / 1e9:.2f} GB/s of this disk, whatever it holds: {tokens:,} tokens in the largest "
        f"of {rows} rows"
    )


def verdict(run: Run, rows: int, tokens_per_second: float) -> str:
    """Which of the two a streamed run waits for, disk or processor, by a timed speed."""
    reading = bytes_of_a_batch(run) / read_speed(weight_files(run.base)[0])
    usual = sum(run.lengths) / len(run.lengths) * rows / tokens_per_second
    if reading <= usual:
        return f"a batch computes for {usual:.1f} s and reads for {reading:.1f} s beside it"
    return (
        f"the disk is too slow: a batch reads for {reading:.1f} s and computes for {usual:.1f} s; "
        f"raise {named('training.batch_size')}"
    )
