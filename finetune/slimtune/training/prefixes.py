"""What rows of a batch begin with in common, computed once.

Rows of one task share a system prompt and an instruction: half of all tokens, where the questions
are short. A transformer's state at a position depends on what stands before it alone, so the state
of a shared beginning is the same in every row. It is laid out once, and the rest of each of its
rows after it: positions count on from the beginning, attention lets each rest see the beginning and
itself, and what the rows say to the beginning's keys and values adds up in its gradient. Losses and
gradients are those of whole rows, to rounding.

Nothing that is learned is shared, nor the token before it: its logits are the row's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from slimtune.inference.batching import SHORTEST_SHARED, before_needed, common_beginning

# A piece of a row of tokens: the length of a sample, or of a beginning and what follows it in each.
Piece = int | tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """`kept`: the places, in the batch's row of whole samples, of the tokens that are computed, in
    their order; `places`: where the token of each place of that row stands among them."""

    pieces: list[Piece]
    kept: torch.Tensor
    places: torch.Tensor


def layout(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Layout | None:
    """How to lay out samples so that what they share is computed once; None where that is naught.

    `ids` and `labels` are those of whole samples, one after another in the batch.
    """
    groups = _groups(ids, [*map(before_needed, labels)])
    if all(shared == 0 for shared, _ in groups):
        return None
    starts = [0, *accumulate(map(len, ids))]
    pieces: list[Piece] = []
    kept: list[int] = []
    places = torch.empty(starts[-1], dtype=torch.long)
    for shared, members in groups:
        rests = [len(ids[i]) - shared for i in members]
        pieces += [(shared, *rests)] if shared else rests
        begin = starts[members[0]]
        beginning = torch.arange(len(kept), len(kept) + shared)
        kept += range(begin, begin + shared)
        for i, rest in zip(members, rests, strict=True):
            own = starts[i] + shared
            places[starts[i] : own] = beginning
            places[own : own + rest] = torch.arange(len(kept), len(kept) + rest)
            kept += range(own, own + rest)
    return Layout(pieces, torch.tensor(kept), places)


def draws(model: nn.Module) -> bool:
    """Whether the model draws numbers while it trains: rows that share would share those too."""
    dropouts = (one.p for one in model.modules() if isinstance(one, nn.Dropout))
    return any(dropouts) or bool(getattr(model.config, "attention_dropout", 0.0))


def _groups(ids: Sequence[Sequence[int]], most: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(tokens shared, samples) of each group: in the order of their ids those with the longest
    beginning in common are neighbours. A sample joins the group before it where that saves more
    than it costs the group in length."""
    groups: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(ids)), key=lambda i: ids[i]):
        if groups:
            shared, members = groups[-1]
            both = common_beginning(ids[members[-1]], ids[i])
            common = min(both, most[i], shared or most[members[-1]])
            if common >= SHORTEST_SHARED and common * len(members) >= shared * (len(members) - 1):
                groups[-1] = (common, [*members, i])
                continue
        groups.append((0, [i]))
    return groups
