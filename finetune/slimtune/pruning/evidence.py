"""Gathering the evidence for criteria: norms from the file, flow and slope from calibration."""

from collections.abc import Iterator

import torch
from torch import nn

from slimtune.inference.stack import Stack, Stream, TokenBatch, input_hook
from slimtune.models.family import linear
from slimtune.models.model_shape import ModelShape
from slimtune.models.weights import Checkpoint
from slimtune.pruning.criteria import Evidence
from slimtune.pruning.writer import finite

READERS = {"ffn": "down_proj", "groups": "o_proj"}  # the matrix that reads a kind of unit
_MAKERS = {"ffn": ("gate_proj", "up_proj"), "groups": ("q_proj", "k_proj", "v_proj")}

Slopes = dict[int, dict[str, torch.Tensor]]  # layer -> kind of unit -> (units,)


class Gram:
    """G = X^T X over the inputs X (tokens, in) of a linear layer, float64; or its diagonal only."""

    def __init__(self, size: int, *, full: bool) -> None:
        self._full = full
        shape = (size, size) if full else (size,)
        self._sum = torch.zeros(shape, dtype=torch.float64)

    def add(self, inputs: torch.Tensor) -> None:
        if self._full:
            self._sum += inputs.T @ inputs
        else:
            self._sum += inputs.square().sum(dim=0)

    @property
    def matrix(self) -> torch.Tensor:
        return self._sum

    @property
    def diagonal(self) -> torch.Tensor:
        return self._sum.diagonal() if self._full else self._sum


def units_of(kind: str, shape: ModelShape) -> int:
    """FFN neurons or KV groups of a layer."""
    return shape.ffn if kind == "ffn" else shape.kv_heads


def weigh(
    checkpoint: Checkpoint,
    layer: int,
    kind: str,
    shape: ModelShape,
    gram: Gram | None = None,
    slope: torch.Tensor | None = None,
) -> Evidence:
    """The evidence on the units of one kind in one layer; norms are read a few rows at a time."""
    units = units_of(kind, shape)
    reader = column_squares(checkpoint, linear(layer, READERS[kind]))
    makers = [row_squares(checkpoint, linear(layer, part)) for part in _MAKERS[kind]]
    flow = None if gram is None else gram.diagonal * reader
    return Evidence(
        incoming=torch.stack([_per_unit(squares, units).sqrt() for squares in makers]),
        outgoing=_per_unit(reader, units).sqrt(),
        flow=None if flow is None else _per_unit(flow, units),
        slope=slope,
    )


def gather(
    stack: Stack, layer: nn.Module, stream: Stream, batches: list[TokenBatch], *, full: bool
) -> dict[str, Gram]:
    """Grams of what down_proj and o_proj are given, over the real tokens of all batches."""
    modules = {"ffn": layer.mlp.down_proj, "groups": layer.self_attn.o_proj}
    grams = {kind: Gram(module.in_features, full=full) for kind, module in modules.items()}
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        input_hook(module, lambda inputs, kind=kind: seen.__setitem__(kind, inputs))
        for kind, module in modules.items()
    ]
    for number, batch in enumerate(batches):
        stack.run(layer, stream.read(number))
        for kind, gram in grams.items():
            gram.add(seen[kind][batch.real])
    for hook in hooks:
        hook.remove()
    return grams


def row_squares(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """|W_i|^2 of every row i, float64, shape (rows,)."""
    pieces = [rows.double().square().sum(dim=1) for _, rows in checkpoint.rows(name)]
    return finite(torch.cat(pieces), checkpoint, name)


def column_squares(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """|W_.j|^2 of every column j, float64, shape (columns,)."""
    squares = torch.zeros(checkpoint.tensors[name].shape[1], dtype=torch.float64)
    for _, rows in checkpoint.rows(name):
        squares += rows.double().square().sum(dim=0)
    return finite(squares, checkpoint, name)


def _per_unit(squares: torch.Tensor, units: int) -> torch.Tensor:
    return squares.view(units, -1).sum(dim=1)


def slopes(stack: Stack, shape: ModelShape, batches: list[TokenBatch], folder) -> Slopes:
    """sum of w * dL/dw over each unit's weights, L the summed loss of all next tokens: exact.

    Backward goes layer by layer as forward does: the inputs of all layers lie on disk, each layer
    runs once more with gradients, and what flows back replaces what flowed in. In memory are one
    layer with its gradients, and one batch.
    """
    streams = [Stream(folder, f"into-{index}") for index in range(stack.layers + 1)]
    with torch.no_grad():
        for number, batch in enumerate(batches):
            streams[0].write(number, stack.embed(batch.ids))
        for index in range(stack.layers):
            layer = stack.layer(index)
            for number in range(len(batches)):
                streams[index + 1].write(number, stack.run(layer, streams[index].read(number)))
    for number, gradient in _head_gradients(stack, streams[-1], batches):
        streams[-1].write(number, gradient)
    found: Slopes = {}
    for index in reversed(range(stack.layers)):
        layer = stack.layer(index, train=True)
        for number in range(len(batches)):
            hidden = streams[index].read(number).requires_grad_()
            stack.run(layer, hidden).backward(streams[index + 1].read(number))
            streams[index].write(number, hidden.grad)
        found[index] = {kind: _slope(layer, kind, shape) for kind in READERS}
    return found


def _head_gradients(
    stack: Stack, stream: Stream, batches: list[TokenBatch]
) -> Iterator[tuple[int, torch.Tensor]]:
    """dL/dh of the last layer's output, one row of a batch at a time; the head is whole here."""
    head = torch.cat([rows for _, rows in stack.head()])
    norm = stack.norm()
    for number, batch in enumerate(batches):
        hidden = stream.read(number).requires_grad_()
        for row in range(len(hidden)):
            length = int(batch.real[row].sum())
            logits = norm(hidden[row, : length - 1]) @ head.T
            targets = batch.ids[row, 1:length]
            nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
        yield number, hidden.grad


def _slope(layer: nn.Module, kind: str, shape: ModelShape) -> torch.Tensor:
    block = layer.mlp if kind == "ffn" else layer.self_attn
    units = units_of(kind, shape)
    reader = getattr(block, READERS[kind]).weight
    total = _per_unit((reader * reader.grad).sum(dim=0).double(), units)
    for part in _MAKERS[kind]:
        weight = getattr(block, part).weight
        total += _per_unit((weight * weight.grad).sum(dim=1).double(), units)
    return total.detach()
