"""Dropping whole layers: those that change what passes through them least."""

from pathlib import Path

import torch
from torch.nn import functional as F

from slimtune.inference.stack import Stack, Stream, TokenBatch
from slimtune.models.model_shape import ModelShape
from slimtune.models.weights import Checkpoint
from slimtune.pruning.anatomy import Keep
from slimtune.pruning.writer import few_ids, masked, require_equal, write_pruned


def drop_layers(
    source: Path,
    output: Path,
    shape: ModelShape,
    batches: list[TokenBatch],
    *,
    ends: bool,
    scratch: Path,
) -> tuple[list[int], float]:
    """Writes the model with `shape.layers` layers; the (old) numbers of those that stay, and how
    far the folder, loaded back, is from the dense model without the others.

    The first and the last layer are never dropped unless `ends` allows it, or nothing else is left.
    """
    checkpoint = Checkpoint(source)
    scores = influence(Stack.of(source), batches, scratch)
    if not ends and shape.layers >= 2:
        scores[0] = scores[-1] = torch.inf
    kept = scores.topk(shape.layers).indices.sort().values.tolist()
    keep = Keep(kept)
    write_pruned(checkpoint, shape, keep, output)
    ids = few_ids(shape.vocabulary, seed=0)
    return kept, require_equal(output, ids, masked(source, keep, ids))


@torch.no_grad()
def influence(stack: Stack, batches: list[TokenBatch], scratch: Path) -> torch.Tensor:
    """score = 1 - mean over tokens of cos(layer's input, layer's output), shape (layers,).

    Block influence, ShortGPT, arXiv:2403.03853.
    """
    stream, scores = Stream(scratch, "depth"), torch.zeros(stack.layers)
    for number, batch in enumerate(batches):
        stream.write(number, stack.embed(batch.ids))
    for index in range(stack.layers):
        layer, similar = stack.layer(index), []
        for number, batch in enumerate(batches):
            before = stream.read(number)
            after = stack.run(layer, before)
            similar.append(F.cosine_similarity(before, after, dim=-1)[batch.real])
            stream.write(number, after)
        scores[index] = 1 - torch.cat(similar).mean()
    return scores
