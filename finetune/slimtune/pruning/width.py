"""Cutting FFN neurons and KV groups: streamed by norms alone, or layer by layer with calibration.

With calibration the layers are pruned in sequence. What layer l is given has gone through the
pruned layers before it, so its units are chosen, and its down_proj and o_proj solved again, for the
inputs that they will really meet: on stories260K (a quarter cut) perplexity 13.0, against 13.8 with
the inputs of the dense model.
"""

from pathlib import Path

import torch

from slimtune.inference.stack import Stack, Stream, TokenBatch
from slimtune.machine.process import large_blocks_returned
from slimtune.models.family import linear
from slimtune.models.model_shape import ModelShape
from slimtune.models.weights import Checkpoint
from slimtune.pruning.anatomy import Keep, channels, prunable_shape
from slimtune.pruning.criteria import CRITERIA, Criterion, strongest
from slimtune.pruning.evidence import READERS, Gram, Slopes, gather, slopes, weigh
from slimtune.pruning.refit import refit
from slimtune.pruning.writer import (
    PrunedWriter,
    few_ids,
    first_row,
    logits_of,
    masked,
    require_equal,
    write_pruned,
)


@large_blocks_returned()
def cut_width(
    source: Path,
    output: Path,
    shape: ModelShape,
    *,
    criterion: str = "magnitude",
    batches: list[TokenBatch] | None = None,
    solve: bool = True,
    seed: int = 0,
    scratch: Path | None = None,
) -> float:
    """Writes the model of `source` with the neurons and KV groups of `shape` to `output`.

    Without `batches` only norms and a few rows are ever in memory. With them one decoder layer is,
    and its output and FFN projections are refitted where `solve` is set. Returns how far the
    folder, loaded back, is from the model that was meant (`writer.require_equal`).
    """
    checkpoint = Checkpoint(source)
    generator = torch.Generator().manual_seed(seed)
    if batches is None:
        return _stream(checkpoint, output, shape, CRITERIA[criterion], generator)
    old = prunable_shape(checkpoint)
    stack = Stack(checkpoint.config, checkpoint.tensors)
    sloped = slopes(stack, old, batches, scratch / "slopes") if criterion == "taylor" else {}
    pruning = _Sequence(checkpoint, stack, old, shape, CRITERIA[criterion], generator, sloped)
    return pruning.run(output, batches, scratch, full=solve)


def _stream(
    checkpoint: Checkpoint,
    output: Path,
    shape: ModelShape,
    criterion: Criterion,
    generator: torch.Generator,
) -> float:
    old = prunable_shape(checkpoint)
    keep = Keep(layers=range(old.layers))
    for layer in keep.layers:
        for kind, count in _counts(old, shape).items():
            scores = criterion(weigh(checkpoint, layer, kind, old), generator)
            getattr(keep, kind)[layer] = strongest(scores, count)
    write_pruned(checkpoint, shape, keep, output)
    ids = few_ids(shape.vocabulary, seed=0)
    return require_equal(output, ids, masked(checkpoint.folder, keep, ids))


def _counts(old: ModelShape, new: ModelShape) -> dict[str, int]:
    """Units that stay, by kind, of the kinds that are cut."""
    counts = {"ffn": (old.ffn, new.ffn), "groups": (old.kv_heads, new.kv_heads)}
    return {kind: left for kind, (before, left) in counts.items() if left != before}


class _Sequence:
    """The calibrated cut, layer after layer."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stack: Stack,
        old: ModelShape,
        new: ModelShape,
        criterion: Criterion,
        generator: torch.Generator,
        sloped: Slopes,
    ) -> None:
        self._checkpoint, self._stack = checkpoint, stack
        self._old, self._new = old, new
        self._criterion, self._generator, self._slopes = criterion, generator, sloped

    @torch.no_grad()
    def run(self, output: Path, batches: list[TokenBatch], scratch: Path, *, full: bool) -> float:
        layers = list(range(self._old.layers))
        writer = PrunedWriter(self._checkpoint, self._new, layers, output)
        writer.write(None, Keep(layers))
        pruned, stream = Stack(writer.config, writer.tensors), Stream(scratch, "width")
        for number, batch in enumerate(batches):
            stream.write(number, self._stack.embed(batch.ids))
        for index in layers:
            dense = self._stack.layer(index)
            grams = gather(self._stack, dense, stream, batches, full=full)
            del dense
            keep = self._choose(index, grams)
            writer.write(index, keep, self._solved(index, keep, grams) if full else None)
            del grams
            layer = pruned.layer(index)
            for number in range(len(batches)):
                stream.write(number, pruned.run(layer, stream.read(number)))
            del layer  # or it would still be there beside the next one
        writer.close()
        ids = first_row(batches[0])
        hidden = stream.read(0)[:1, : ids.shape[1]]
        return require_equal(output, ids, logits_of(pruned, hidden))

    def _choose(self, layer: int, grams: dict[str, Gram]) -> Keep:
        keep = Keep(layers=range(self._old.layers))
        for kind, count in _counts(self._old, self._new).items():
            slope = self._slopes[layer][kind] if self._slopes else None
            evidence = weigh(self._checkpoint, layer, kind, self._old, grams[kind], slope)
            scores = self._criterion(evidence, self._generator)
            getattr(keep, kind)[layer] = strongest(scores, count)
        return keep

    def _solved(self, layer: int, keep: Keep, grams: dict[str, Gram]) -> dict[str, torch.Tensor]:
        """New down_proj and o_proj for the units that stay; the biases stay as they are."""
        solved = {}
        for kind in _counts(self._old, self._new):
            name = linear(layer, READERS[kind])
            kept = getattr(keep, kind)[layer]
            if kind == "groups":
                kept = channels(kept, self._old.head_dim * self._old.heads // self._old.kv_heads)
            solved[name] = refit(self._checkpoint.read(name), grams[kind].matrix, kept)
        return solved
