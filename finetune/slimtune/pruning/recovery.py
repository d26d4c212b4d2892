"""Block-wise recovery: after a cut each layer learns to give what the uncut one gave.

One layer of each model is in memory, with its gradients and AdamW's two moments: what a student
taught whole needs for all of its layers, this needs for one. What flows through both models lies on
disk. A layer is given what the recovered layers before it send, so that it makes up for their
errors, too: on stories260K (a quarter cut and refitted, one seed) perplexity 9.8, against 10.2 with
the inputs of the uncut model.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimtune.artifacts.files import write_json
from slimtune.config import Config
from slimtune.config.compression import Pruning
from slimtune.errors import SettingsError
from slimtune.inference.stack import Stack, Stream, TokenBatch
from slimtune.machine.process import large_blocks_returned
from slimtune.models.weights import Checkpoint, CheckpointWriter, copy_companions
from slimtune.pruning.outcome import CARD
from slimtune.pruning.writer import finite, first_row, logits_of, require_equal

_log = logging.getLogger(__name__)

_STEP_TOKENS = 2048  # tokens of one update: 8 rows of 256
_RATE, _WIDTH, _FALL = 2e-4, 2000, 0.78  # as `training.rates` has it for all weights, times 4
_WARMUP = 10  # updates


@dataclass(frozen=True)
class Kept:
    """What a cut has kept of the uncut model, as ascending indices; None: all of it."""

    layers: Sequence[int] | None = None
    hidden: Sequence[int] | None = None


@dataclass(frozen=True)
class Recovered:
    """`errors`: of each layer, before and after, how far what it gives is from what the uncut one
    gave (`_shares`, mean over tokens). `difference`: of the folder, loaded back
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
    learner = _Learner(cut, batches, pruning, _rate(checkpoint.config["hidden_size"]))
    errors = []
    for index, uncut in enumerate(_groups(kept.layers, whole.layers)):
        for one in uncut:
            _flow(whole, one, meant, batches)
        layer = cut.layer(index, train=True)
        errors.append(learner.teach(layer, given, _Targets(meant, kept.hidden)))
        _write_layer(writer, checkpoint, index, layer)
        del layer  # or it would still be there beside the next one
        _flow(written, index, given, batches)
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


@torch.no_grad()
def _flow(stack: Stack, index: int, stream: Stream, batches: list[TokenBatch]) -> None:
    """What is in `stream` goes through one layer."""
    layer = stack.layer(index)
    for number in range(len(batches)):
        stream.write(number, stack.run(layer, stream.read(number)))


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


@dataclass(frozen=True)
class _Targets:
    """The hidden states of the uncut model, of the channels that are left."""

    stream: Stream
    hidden: Sequence[int] | None

    def read(self, number: int) -> torch.Tensor:
        states = self.stream.read(number)
        return states if self.hidden is None else states[..., list(self.hidden)]


def _shares(found: torch.Tensor, meant: torch.Tensor) -> torch.Tensor:
    """error = |found - meant|^2 / |meant|^2 of each token, (tokens,): a BOS whose states are a
    thousand times as large as the others' counts as one token, too."""
    tiny = torch.finfo(meant.dtype).tiny
    return (found - meant).square().sum(-1) / meant.square().sum(-1).clamp_min(tiny)


class _Learner:
    """AdamW on the error, the rate rising over a few updates and falling as a cosine."""

    def __init__(
        self, stack: Stack, batches: list[TokenBatch], pruning: Pruning, rate: float
    ) -> None:
        self._stack, self._batches, self._rate = stack, batches, rate
        self._epochs = pruning.recovery_epochs
        self._generator = torch.Generator().manual_seed(pruning.seed)
        self._steps = [
            (number, slice(start, start + rows))
            for number, batch in enumerate(batches)
            for rows in [max(1, _STEP_TOKENS // batch.ids.shape[1])]
            for start in range(0, len(batch.ids), rows)
        ]

    def teach(self, layer: nn.Module, given: Stream, targets: _Targets) -> tuple[float, float]:
        """The error before and after; a layer that came no closer is left as it was."""
        before = self._error(layer, given, targets)
        start = {name: value.detach().clone() for name, value in layer.state_dict().items()}
        optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0, betas=(0.9, 0.95))
        total = math.ceil(self._epochs * len(self._steps))
        for step, (number, rows) in enumerate(self._order(total)):
            rate = self._rate * min(1, (step + 1) / _WARMUP)
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / total)) / 2
            real = self._batches[number].real[rows]
            found = self._stack.run(layer, given.read(number)[rows])[real]
            loss = _shares(found, targets.read(number)[rows][real]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = self._error(layer, given, targets)
        if not after < before:
            layer.load_state_dict(start)
            after = before
        return before, after

    def _order(self, total: int) -> Iterator[tuple[int, slice]]:
        for step in range(total):
            if step % len(self._steps) == 0:
                order = torch.randperm(len(self._steps), generator=self._generator).tolist()
            yield self._steps[order[step % len(self._steps)]]

    @torch.no_grad()
    def _error(self, layer: nn.Module, given: Stream, targets: _Targets) -> float:
        """The error, mean over all real tokens."""
        total = tokens = 0.0
        for number, batch in enumerate(self._batches):
            found = self._stack.run(layer, given.read(number))[batch.real]
            total += _shares(found, targets.read(number)[batch.real]).double().sum().item()
            tokens += len(found)
        return total / tokens
