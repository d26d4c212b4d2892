"""Structured pruning of FFN neurons, tensor by tensor: a smaller, ordinary checkpoint comes out.

Every layer keeps the same number of neurons, so the result is the same architecture with a smaller
`intermediate_size`. Two passes over the safetensors, a few rows at a time: norms and the choice of
neurons first, then the cut; the peak of memory depends neither on width nor on depth.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from slimtune.console import InputError, SettingsError
from slimtune.models.checkpoints import Checkpoint, CheckpointWriter, copy_companions
from slimtune.models.folders import write_json
from slimtune.pruning.criteria import CRITERIA, Criterion

_FFN = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate_proj|up_proj|down_proj)\.(weight|bias)")

Keep = Mapping[int, torch.Tensor]  # layer -> indices of the neurons that stay, ascending


@dataclass(frozen=True)
class PruneReport:
    """Sizes before and after; bytes are those of the weights on disk."""

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    ffn_before: int
    ffn_after: int


def prune(
    model_folder: Path,
    output: Path,
    *,
    ffn_ratio: float,
    criterion: str = "magnitude",
    seed: int = 0,
) -> PruneReport:
    """Cuts `ffn_ratio` of the FFN neurons of every layer, those that `criterion` scores lowest.

    Writes an ordinary model folder to `output`. Raises SettingsError for a ratio that cuts nothing
    or all and for an unknown criterion; InputError for quantised or non-finite weights and for a
    model without a gated FFN (Llama, Mistral, Qwen2 have one).
    """
    if criterion not in CRITERIA:
        raise SettingsError(
            f"pruning.criterion: {criterion!r}", "no such criterion", f"use {' or '.join(CRITERIA)}"
        )
    checkpoint = Checkpoint(model_folder)
    checkpoint.require_full_precision("prune")
    layers, neurons = ffn_layers(checkpoint)
    size = ffn_size(neurons, ffn_ratio)
    generator = torch.Generator().manual_seed(seed)
    keep = {
        layer: strongest(score_layer(checkpoint, layer, CRITERIA[criterion], generator), size)
        for layer in range(layers)
    }
    write_pruned(checkpoint, keep, size, output)
    pruned = Checkpoint(output)
    return PruneReport(
        parameters_before=checkpoint.parameters,
        parameters_after=pruned.parameters,
        bytes_before=checkpoint.bytes,
        bytes_after=pruned.bytes,
        ffn_before=neurons,
        ffn_after=size,
    )


def ffn_size(neurons: int, ratio: float) -> int:
    """Neurons left: neurons * (1 - ratio) to the nearest multiple of `ffn_multiple`, at least one.

    Raises SettingsError, with the nearest ratio that works, where that is not a cut.
    """
    multiple = ffn_multiple(neurons)
    size = max(1, math.floor(neurons * (1 - ratio) / multiple + 0.5)) * multiple
    if 0 < ratio < 1 and size < neurons:
        return size
    largest = (neurons - 1) // multiple * multiple
    if not largest:
        raise InputError(
            f"an FFN of {neurons} neurons is too small to cut",
            f"the size left must be a multiple of {multiple}",
            "prune a larger model",
        )
    left = "nothing" if ratio >= 1 else f"all of {neurons} neurons"
    raise SettingsError(
        f"pruning.ffn_ratio: {ratio:g} leaves {left}",
        f"the size left is rounded to a multiple of {multiple}, which GGUF's smaller types need",
        f"use a share such as {math.ceil(100 * (1 - largest / neurons)) / 100:g}",
    )


def ffn_multiple(neurons: int) -> int:
    """256 where the model is that large: K-quants need rows of 256, other rows get larger types."""
    return 256 if neurons >= 512 else 32 if neurons >= 64 else 8


def ffn_layers(checkpoint: Checkpoint) -> tuple[int, int]:
    """Number of layers and neurons in each; InputError unless all have the same gated FFN."""
    layers = checkpoint.config.get("num_hidden_layers", 0)
    neurons = checkpoint.config.get("intermediate_size", 0)
    hidden = checkpoint.config.get("hidden_size", 0)
    wanted = {"gate_proj": (neurons, hidden), "up_proj": (neurons, hidden)}
    wanted["down_proj"] = (hidden, neurons)
    shapes = checkpoint.shapes
    for layer in range(max(1, layers)):
        for part, shape in wanted.items():
            name = _weight(layer, part)
            if shapes.get(name) != shape:
                raise InputError(
                    f"{checkpoint.folder}: no gated FFN of the shape its config.json says",
                    f"{name} should be {shape}, it is {shapes.get(name) or 'missing'}",
                    "prune a Llama, Mistral or Qwen2 model with one FFN size in all layers",
                )
    return layers, neurons


def score_layer(
    checkpoint: Checkpoint, layer: int, criterion: Criterion, generator: torch.Generator
) -> torch.Tensor:
    """One score a neuron of `layer`, from norms read a few rows at a time."""
    gate = row_norms(checkpoint, _weight(layer, "gate_proj"))
    up = row_norms(checkpoint, _weight(layer, "up_proj"))
    down = column_norms(checkpoint, _weight(layer, "down_proj"))
    return criterion(gate, up, down, generator)


def row_norms(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """|W_i| of every row i, float32, shape (rows,)."""
    pieces = [rows.float().norm(dim=1) for _, rows in checkpoint.rows(name)]
    return _finite(torch.cat(pieces), checkpoint, name)


def column_norms(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """|W_.j| of every column j, float32, shape (columns,); squares are summed in float64."""
    squares = torch.zeros(checkpoint.shapes[name][1], dtype=torch.float64)
    for _, rows in checkpoint.rows(name):
        squares += rows.float().square().sum(dim=0)
    return _finite(squares.sqrt().float(), checkpoint, name)


def strongest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` highest scores, ascending: the order of what stays does not change."""
    return scores.topk(count).indices.sort().values


def write_pruned(checkpoint: Checkpoint, keep: Keep, size: int, output: Path) -> None:
    """Writes the checkpoint with `keep`'s neurons only, and its config with the new size."""
    spec = {}
    for name, info in checkpoint.tensors.items():
        axis, _ = _cut(name, keep)
        shape = tuple(size if a == axis else length for a, length in enumerate(info.shape))
        spec[name] = (info.dtype, shape)
    with CheckpointWriter(output, spec, files=checkpoint.files) as writer:
        for name in checkpoint.tensors:
            _write_tensor(checkpoint, writer, name, *_cut(name, keep))
    copy_companions(checkpoint.folder, output, without={"config.json"})
    write_json(output / "config.json", checkpoint.config | {"intermediate_size": size})


def _write_tensor(
    checkpoint: Checkpoint,
    writer: CheckpointWriter,
    name: str,
    axis: int | None,
    kept: torch.Tensor | None,
) -> None:
    written = 0
    for start, rows in checkpoint.rows(name):
        _finite(rows, checkpoint, name)
        if axis == 0:
            rows = rows[kept[(kept >= start) & (kept < start + len(rows))] - start]
        elif axis == 1:
            rows = rows.index_select(1, kept)
        writer.write(name, rows, written)
        written += len(rows) if rows.dim() else 0


def _cut(name: str, keep: Keep) -> tuple[int | None, torch.Tensor | None]:
    """The axis of a tensor along which neurons lie, and those that stay; (None, None) elsewhere."""
    match = _FFN.fullmatch(name)
    if match is None or match.group(2, 3) == ("down_proj", "bias"):
        return None, None
    return (1 if match[2] == "down_proj" else 0), keep[int(match[1])]


def _weight(layer: int, part: str) -> str:
    return f"model.layers.{layer}.mlp.{part}.weight"


def _finite(values: torch.Tensor, checkpoint: Checkpoint, name: str) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise InputError(
            f"{checkpoint.folder}: {name} holds NaN or infinity",
            "such a model answers nothing, pruned or not",
            "copy it again, or run the stage that wrote it again",
        )
    return values
