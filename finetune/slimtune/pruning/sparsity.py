"""Zeros instead of cuts: for those who ask. Neither the file nor the speed changes.

Unstructured sparsity sets the least important weights to zero, N:M sparsity N of every M along a
row. Dense kernels multiply zeros as fast as other numbers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from slimtune.artifacts.files import write_json
from slimtune.config import Pruning
from slimtune.errors import QualityError
from slimtune.inference.stack import Stack, Stream, TokenBatch, input_hook
from slimtune.models.family import ATTENTION, LINEARS, linear
from slimtune.models.weights import Checkpoint, CheckpointWriter, copy_companions
from slimtune.pruning.anatomy import prunable_shape

NOTICE = "zeros change neither the file's size nor the speed; cut neurons or heads for that"

Zeroing = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def sparsify(
    source: Path, output: Path, pruning: Pruning, batches: list[TokenBatch] | None, scratch: Path
) -> float:
    """Writes the model with a share of its linear weights at zero; all others are untouched.

    Returns how far the folder, read back, is from that: 0, or QualityError.
    config.json says so (`sparsity`): a merge into this model keeps the zeros.
    """
    checkpoint = Checkpoint(source)
    shape = prunable_shape(checkpoint)
    names = [linear(layer, part) for layer in range(shape.layers) for part in LINEARS]
    zeroing = _zeroing(checkpoint, names, pruning)
    spec = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    with CheckpointWriter(output, spec, files=checkpoint.files) as writer:
        for name in checkpoint.tensors.keys() - set(names):
            for start, rows in checkpoint.rows(name):
                writer.write(name, rows, start)
        inputs = _energies(checkpoint, writer, batches, scratch, pruning)
        for layer, energy in inputs:
            for part in LINEARS:
                name = linear(layer, part)
                for start, rows in _pieces(checkpoint, name, pruning):
                    writer.write(name, zeroing(rows, energy.get(part)), start)
    copy_companions(checkpoint.folder, output, without={"config.json"})
    said = {"share": pruning.sparsity, "pattern": pruning.sparsity_pattern}
    write_json(output / "config.json", checkpoint.config | {"sparsity": said})
    _require_sparse(checkpoint, Checkpoint(output), set(names), pruning)
    return 0.0


def _require_sparse(
    before: Checkpoint, after: Checkpoint, names: set[str], pruning: Pruning
) -> None:
    """QualityError unless every weight read back is the original's, or a zero of a linear layer.

    The zeros must be as many as asked for, to within one a row: a row's count is rounded down.
    """
    zeros = weights = 0
    for name in before.tensors:
        pairs = zip(before.rows(name), after.rows(name), strict=True)
        for (_, rows), (_, written) in pairs:
            same = written == rows
            if name in names:
                zeros += int((written == 0).sum())
                weights += written.numel()
                same |= written == 0
            if not same.all():
                raise _not_meant(after, f"{name} holds other weights than its model, beside zeros")
    asked = pruning.sparsity
    if pruning.sparsity_pattern != "unstructured":
        kept, group = map(int, pruning.sparsity_pattern.split(":"))
        asked = 1 - kept / group
    shortest = min(before.tensors[name].shape[1] for name in names)
    if zeros < (asked - 1 / shortest) * weights:
        raise _not_meant(after, f"{zeros / weights:.3f} of its weights are zero, not {asked:g}")


def _not_meant(folder: Checkpoint, found: str) -> QualityError:
    return QualityError(
        f"{folder.folder}: the saved model is not the sparse one that was meant",
        found,
        "this is a bug of SlimTune: please report it with the model's config.json",
    )


def smallest_to_zero(rows: torch.Tensor, scores: torch.Tensor, share: float) -> torch.Tensor:
    """The `share` of each row with the lowest scores set to zero, exactly."""
    count = int(rows.shape[1] * share)
    return rows.scatter(1, scores.topk(count, dim=1, largest=False).indices, 0)


def n_of_m_to_zero(rows: torch.Tensor, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """`n` of every `m` neighbours in a row set to zero, those with the lowest scores."""
    lowest = scores.reshape(-1, m).topk(n, dim=1, largest=False).indices
    return rows.reshape(-1, m).scatter(1, lowest, 0).view_as(rows)


def below_to_zero(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights whose magnitude, as bits, is at most `bits` set to zero."""
    return rows.masked_fill(_magnitude_bits(rows) <= bits, 0)


def global_threshold(checkpoint: Checkpoint, names: list[str], share: float) -> int:
    """The magnitude, as bits of a 16-bit prefix, at or below which `share` of all weights lie.

    Exact for bfloat16 and float16, where a magnitude is 15 bits: one histogram of 32768 counts over
    the streamed tensors. Of float32 the upper 16 bits count (three decimal digits).
    """
    counts = torch.zeros(1 << 15, dtype=torch.int64)
    for name in names:
        for _, rows in checkpoint.rows(name):
            counts += torch.bincount(_magnitude_bits(rows).reshape(-1), minlength=1 << 15)
    return int((counts.cumsum(0) < share * counts.sum()).sum())


def _magnitude_bits(rows: torch.Tensor) -> torch.Tensor:
    """|w| as 15 bits, which order as magnitudes do."""
    if rows.itemsize == 2:
        return rows.view(torch.int16).int() & 0x7FFF
    return (rows.float().view(torch.int32) >> 16) & 0x7FFF


def _zeroing(checkpoint: Checkpoint, names: list[str], pruning: Pruning) -> Zeroing:
    if pruning.sparsity_method == "global":
        threshold = global_threshold(checkpoint, names, pruning.sparsity)
        return lambda rows, _: below_to_zero(rows, threshold)
    pattern = pruning.sparsity_pattern

    def zero(rows: torch.Tensor, energy: torch.Tensor | None) -> torch.Tensor:
        # Wanda, arXiv:2306.11695: |W_ij| * |x_j|, compared within a row.
        scores = rows.float().abs() * (1 if energy is None else energy.sqrt().float())
        if pattern != "unstructured":
            n, m = map(int, pattern.split(":"))
            return n_of_m_to_zero(rows, scores, m - n, m)
        if energy is not None:
            return smallest_to_zero(rows, scores, pruning.sparsity)
        count = max(1, int(rows.numel() * pruning.sparsity))
        return rows.masked_fill(scores <= scores.reshape(-1).kthvalue(count).values, 0)

    return zero


def _pieces(
    checkpoint: Checkpoint, name: str, pruning: Pruning
) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows at a time; the whole tensor where one threshold holds for all of it."""
    if pruning.sparsity_method == "magnitude" and pruning.sparsity_pattern == "unstructured":
        yield 0, checkpoint.read(name)
    else:
        yield from checkpoint.rows(name)


@torch.no_grad()
def _energies(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    batches: list[TokenBatch] | None,
    scratch: Path,
    pruning: Pruning,
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """(layer, part -> sum of squares of its inputs); the layers before are sparse already."""
    layers = checkpoint.config["num_hidden_layers"]
    if pruning.sparsity_method != "wanda":
        yield from ((layer, {}) for layer in range(layers))
        return
    stack, stream = Stack(checkpoint.config, checkpoint.tensors), Stream(scratch, "wanda")
    sparse = Stack(checkpoint.config, writer.tensors)
    for number, batch in enumerate(batches):
        stream.write(number, stack.embed(batch.ids))
    for index in range(layers):
        yield index, _input_squares(stack, stack.layer(index), stream, batches)
        layer = sparse.layer(index)
        for number in range(len(batches)):
            stream.write(number, sparse.run(layer, stream.read(number)))


def _input_squares(
    stack: Stack, layer: torch.nn.Module, stream: Stream, batches: list[TokenBatch]
) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches):
        hooks = [
            input_hook(
                getattr(layer.mlp if part not in ATTENTION else layer.self_attn, part),
                lambda x, part=part, real=batch.real: sums.__setitem__(
                    part, sums.get(part, 0) + x[real].double().square().sum(dim=0)
                ),
            )
            for part in LINEARS
        ]
        stack.run(layer, stream.read(number))
        for hook in hooks:
            hook.remove()
    return sums
