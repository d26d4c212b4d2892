"""Cutting hidden channels: the same ones in every tensor that touches the residual stream.

A channel is a column of the embedding, of q, k, v, gate, up and the output layer, a row of o and
down, an entry of every norm. Chosen is once for the whole model, by all that reads the channel.
RMSNorm divides by the mean square over fewer channels afterwards, so each norm's weight is scaled
by what that changes on the calibration tokens; then every reader is solved again for what is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from slimtune.inference.stack import Stack, Stream, TokenBatch
from slimtune.models.family import NORM_PART, PARTS, linear
from slimtune.models.model_shape import ModelShape
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint
from slimtune.pruning.anatomy import Keep
from slimtune.pruning.criteria import CRITERIA, Evidence, strongest
from slimtune.pruning.evidence import Gram, column_squares, row_squares
from slimtune.pruning.refit import refit
from slimtune.pruning.writer import (
    PrunedWriter,
    few_ids,
    first_row,
    masked,
    provable,
    require_equal,
    write_pruned,
)

# The norms of the residual stream in a layer, and the matrices that read what each gives out.
_READERS = {name: part.readers for name, part in PARTS.items() if part.readers}
_FINAL = f"{NORM_PART.path}.weight"


@dataclass
class _Norms:
    """By name of a norm's weight: sums of squares of what goes in, Gram of what comes out."""

    energy: dict[str, torch.Tensor] = field(default_factory=dict)
    gram: dict[str, Gram] = field(default_factory=dict)


def cut_hidden(
    source: Path,
    output: Path,
    shape: ModelShape,
    *,
    criterion: str,
    batches: list[TokenBatch] | None,
    solve: bool,
    seed: int,
    scratch: Path,
) -> tuple[list[int], float | None]:
    """Writes the model with `shape.hidden` hidden channels. Without `batches` by norms alone.

    Returns the (old) numbers of those that stay, and how far the folder, loaded back, is from the
    dense model with the other channels silent; None where a model is too large to keep what was
    solved until then.

    Taylor knows no slope of a channel: activation's energies stand in for it.
    """
    checkpoint = Checkpoint(source)
    generator = torch.Generator().manual_seed(seed)
    layers = list(range(shape.layers))
    name = "activation" if criterion == "taylor" else criterion
    evidence, energy = _weigh(checkpoint, batches, scratch)
    kept = strongest(CRITERIA[name](evidence, generator), shape.hidden)
    keep = Keep(layers, hidden=kept)
    if batches is None:
        write_pruned(checkpoint, shape, keep, output)
        ids = few_ids(shape.vocabulary, seed=0)
        return kept.tolist(), require_equal(output, ids, masked(source, keep, ids))
    writer, meant, small = PrunedWriter(checkpoint, shape, layers, output), {}, provable(source)
    for layer, norms in _walk(checkpoint, batches, scratch, full=solve):
        replaced = {norm: _scaled(checkpoint, norm, energy[norm], kept) for norm in norms.gram}
        for norm, gram in norms.gram.items() if solve else ():
            for reader in _readers_of(norm, layer, checkpoint):
                replaced[reader] = refit(checkpoint.read(reader), gram.matrix, kept)
        writer.write(layer, keep, replaced)
        if small:
            meant |= replaced
    writer.close()
    if not small:
        return kept.tolist(), None
    ids = first_row(batches[0])
    return kept.tolist(), require_equal(output, ids, masked(source, keep, ids, meant))


def _readers_of(norm: str, layer: int | None, checkpoint: Checkpoint) -> list[str]:
    if layer is None:
        return [] if checkpoint.tied else [OUTPUT]
    return [linear(layer, part) for part in _READERS[norm.split(".")[-2]]]


def _scaled(
    checkpoint: Checkpoint, norm: str, energy: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """The norm's weight * sqrt(mean square of what stays / mean square of all)."""
    weight = checkpoint.read(norm)
    factor = (energy[kept].mean() / energy.mean()).sqrt()
    return (weight[kept].double() * factor).to(weight.dtype)


def _weigh(
    checkpoint: Checkpoint, batches: list[TokenBatch] | None, scratch: Path
) -> tuple[Evidence, dict[str, torch.Tensor]]:
    """Evidence on all hidden channels, and each norm's energies where there are batches."""
    hidden, layers = checkpoint.config["hidden_size"], checkpoint.config["num_hidden_layers"]
    writers, readers = column_squares(checkpoint, EMBEDDING), torch.zeros(hidden).double()
    flow, energy = torch.zeros(hidden).double(), {}
    squares: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        writers += row_squares(checkpoint, linear(layer, "o_proj"))
        writers += row_squares(checkpoint, linear(layer, "down_proj"))
        for norm in _READERS:
            name = f"model.layers.{layer}.{norm}.weight"
            squares[name] = _reading(checkpoint, name, layer)
    squares[_FINAL] = _reading(checkpoint, _FINAL, None)
    for name, reading in squares.items():
        readers += reading * checkpoint.read(name).double().square()
    for _, norms in _walk(checkpoint, batches, scratch, full=False) if batches else ():
        energy |= norms.energy
        for name, gram in norms.gram.items():
            flow += gram.diagonal * squares[name]
    evidence = Evidence(writers.sqrt()[None], readers.sqrt(), flow if batches else None)
    return evidence, energy


def _reading(checkpoint: Checkpoint, norm: str, layer: int | None) -> torch.Tensor:
    """|W_.c|^2 of every channel c, summed over the matrices that read a norm's output."""
    readers = _readers_of(norm, layer, checkpoint) or [EMBEDDING]
    return sum(column_squares(checkpoint, reader) for reader in readers)


@torch.no_grad()
def _walk(
    checkpoint: Checkpoint, batches: list[TokenBatch], scratch: Path, *, full: bool
) -> Iterator[tuple[int | None, _Norms]]:
    """Each layer's norms on the calibration tokens, then with layer None the last norm's."""
    stack, stream = Stack(checkpoint.config, checkpoint.tensors), Stream(scratch, "hidden")
    for number, batch in enumerate(batches):
        stream.write(number, stack.embed(batch.ids))
    for index in range(stack.layers):
        layer, norms = stack.layer(index), _Norms()
        watched = {f"model.layers.{index}.{n}.weight": getattr(layer, n) for n in _READERS}
        for number, batch in enumerate(batches):
            with _Watch(watched, norms, batch, full=full):
                stream.write(number, stack.run(layer, stream.read(number)))
        yield index, norms
    norm, norms = stack.norm(), _Norms()
    for number, batch in enumerate(batches):
        with _Watch({_FINAL: norm}, norms, batch, full=full and not stack.tied):
            norm(stream.read(number))
    yield None, norms


class _Watch:
    """While it is open, what goes through `modules` is added up in `norms`."""

    def __init__(
        self, modules: dict[str, nn.Module], norms: _Norms, batch: TokenBatch, *, full: bool
    ) -> None:
        self._modules, self._norms, self._batch, self._full = modules, norms, batch, full

    def __enter__(self) -> None:
        self._hooks = [
            module.register_forward_hook(partial(self._add, name))
            for name, module in self._modules.items()
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(
        self, name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], after: torch.Tensor
    ) -> None:
        before = inputs[0]
        real, size = self._batch.real, before.shape[-1]
        squares = before[real].square().sum(dim=0).double()
        self._norms.energy[name] = self._norms.energy.get(name, 0) + squares
        self._norms.gram.setdefault(name, Gram(size, full=self._full)).add(after[real])
