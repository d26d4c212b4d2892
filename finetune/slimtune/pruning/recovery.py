"""Block-wise recovery: after a cut each layer learns to give what the uncut one gave.

One layer of each model is in memory, with its gradients and AdamW's two moments: what a student
taught whole needs for all of its layers, this needs for one. What flows through both models lies on
disk. A layer is given what the recovered layers before it send, so that it makes up for their
errors, too: on stories260K (a quarter cut and refitted, one seed) perplexity 9.8, against 10.2 with
the inputs of the uncut model.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from slimtune.artifacts.files import write_json
from slimtune.config import Config
from slimtune.config.compression import Pruning
from slimtune.errors import SettingsError
from slimtune.inference.layer_lessons import LayerLearner, Targets, flow
from slimtune.inference.stack import Stack, Stream, TokenBatch
from slimtune.machine.process import large_blocks_returned
from slimtune.models.weights import Checkpoint, CheckpointWriter, copy_companions
from slimtune.pruning.outcome import CARD
from slimtune.pruning.writer import finite, first_row, logits_of, require_equal

_log = logging.getLogger(__name__)

_RATE, _WIDTH, _FALL = 2e-4, 2000, 0.78  # as `training.rates` has it for all weights, times 4


@dataclass(frozen=True)
class Kept:
    """What a cut has kept of the uncut model, as ascending indices; None: all of it."""

    layers: Sequence[int] | None = None
    hidden: Sequence[int] | None = None


@dataclass(frozen=True)
class Recovered:
    """`errors`: of each layer, before and after, how far what it gives is from what the uncut one
    gave (`layer_lessons.shares`, mean over tokens). `difference`: of the folder, loaded back
    (`writer.require_equal`)."""

    errors: list[tuple[float, float]]
    difference: float

    def metrics(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {"layer_errors": [[float(f"{one:.4g}") for one in pair] for pair in self.errors]}


def require_recoverable(config: Config, calibration: str | None) -> None:
    """SettingsError where layers shall learn, and cannot: before any work."""
    pruning = config.pruning
    if not pruning.recovers:
        return
    if pruning.sparsity or not pruning.cuts:
        filled = "learning fills the zeros of pruning.sparsity"
        raise SettingsError(
            "pruning.recover: blocks",
            filled if pruning.sparsity else "nothing is cut, so there is nothing to win back",
            "use --recover none, or a ratio such as --ffn-ratio 0.25 and --sparsity 0",
        )
    if calibration is None:
        raise SettingsError(
            "pruning.recover: blocks",
            "layers learn on calibration rows, and there are none",
            "use --calibration self for the model's own words, or --recover none",
        )


@large_blocks_returned()
def recover_blocks(
    dense: Path,
    pruned: Path,
    output: Path,
    batches: list[TokenBatch],
    pruning: Pruning,
    scratch: Path,
    kept: Kept,
) -> Recovered:
    """Writes `pruned` to `output` with every layer taught, in order, by those of `dense`.

    `kept` says which layers and hidden channels of `dense` those of `pruned` were. Where layers
    were dropped, the one before them learns what came out of the last of them.
    """
    whole, cut = Stack.of(dense), Stack.of(pruned)
    checkpoint = Checkpoint(pruned)
    spec = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    writer = CheckpointWriter(output, spec, files=checkpoint.files)
    for name in spec:
        if not name.startswith("model.layers."):
            for start, rows in checkpoint.rows(name):
                writer.write(name, rows, start)
    written = Stack(checkpoint.config, writer.tensors)
    meant, given = Stream(scratch, "uncut"), Stream(scratch, "recovered")
    for number, batch in enumerate(batches):
        meant.write(number, whole.embed(batch.ids))
        given.write(number, cut.embed(batch.ids))
    rate, epochs = _rate(checkpoint.config["hidden_size"]), pruning.recovery_epochs
    learner = LayerLearner(cut, batches, rate=rate, epochs=epochs, seed=pruning.seed)
    numbers, errors = range(len(batches)), []
    for index, uncut in enumerate(_groups(kept.layers, whole.layers)):
        for one in uncut:
            flow(whole, whole.layer(one), meant, numbers)
        layer = cut.layer(index, train=True)
        errors.append(learner.teach(layer, given, Targets(meant, kept.hidden)))
        _write_layer(writer, checkpoint, index, layer)
        del layer  # or it would still be there beside the next one
        flow(written, written.layer(index), given, numbers)
        _log.info(
            "recovery: layer %d of %d: error %.3g -> %.3g", index + 1, cut.layers, *errors[-1]
        )
    writer.close()
    copy_companions(pruned, output, without={"config.json", CARD})
    write_json(output / "config.json", checkpoint.config)
    ids = first_row(batches[0])
    hidden = given.read(0)[:1, : ids.shape[1]]
    return Recovered(errors, require_equal(output, ids, logits_of(written, hidden)))


def _rate(hidden: int) -> float:
    """The rate for a layer of that width: one layer alone stands larger steps than a model."""
    return _RATE * (_WIDTH / hidden) ** _FALL


def _groups(kept: Sequence[int] | None, layers: int) -> Iterator[range]:
    """For each layer that stays the uncut ones whose work it does: itself, and all that went
    between it and the next that stays; the first also does that of those before it."""
    starts = list(range(layers)) if kept is None else [0, *kept[1:]]
    for start, stop in zip(starts, [*starts[1:], layers], strict=True):
        yield range(start, stop)


def _write_layer(
    writer: CheckpointWriter, checkpoint: Checkpoint, index: int, layer: nn.Module
) -> None:
    """The layer's tensors in the type they were stored in; buffers of the file as they were."""
    prefix, learned = f"model.layers.{index}.", layer.state_dict()
    for name, info in checkpoint.tensors.items():
        if name.startswith(prefix):
            values = learned.get(name.removeprefix(prefix))
            values = checkpoint.read(name) if values is None else values.to(info.dtype)
            writer.write(name, finite(values, checkpoint, name))
