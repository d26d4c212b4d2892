"""Rows of different lengths in one forward pass: sorted, left-padded, masked, within a budget."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel

from slimtune.console import tenth_done
from slimtune.errors import ResourceError
from slimtune.machine.refusals import is_out_of_memory
from slimtune.prompts import IGNORED

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

SHORTEST_SHARED = 8  # tokens in common: below, copying keys and values costs what the tokens would
_WORTH_A_PASS = 64  # tokens that a pass over the weights for a beginning alone must save


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row numbers in batches, the longest first; rows x longest of a batch stays within `budget`.

    The longest come first so that memory runs out at once or never. A row beyond the budget goes
    alone.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def run_batched(
    lengths: Sequence[int],
    budget: int,
    run: Callable[[list[int]], list[Result]],
    known: Collection[int] = frozenset(),
    done_is: str = "rows done",
) -> Iterator[tuple[int, Result]]:
    """(row, result) of `run(rows)` over all rows, in batches of at most `budget` tokens.

    `done_is` says in the log what is counted, as in "34 of 340 prompts answered".

    Batches are made of all rows and left out where all of theirs are `known`: a resumed run pads
    the rest as the first run would have, and gets its figures bit for bit. A batch that runs out
    of memory is halved, and all after it. Raises ResourceError where a single row does.
    """
    waiting = unfinished(by_length(lengths, budget), known)
    done = len(lengths) - sum(map(len, waiting))
    while waiting:
        batch = waiting.pop(0)
        try:
            results = run(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            too_large, waiting = [batch, *waiting], []
            for rows in too_large:
                waiting += _halves(rows, error)
            continue
        yield from zip(batch, results, strict=True)
        before, done = done, done + len(batch)
        if tenth_done(before, done, len(lengths)):
            _log.info("%d of %d %s", done, len(lengths), done_is)


def unfinished(batches: Iterable[list[int]], known: Collection[int]) -> list[list[int]]:
    """The batches of which a row is still missing."""
    return [batch for batch in batches if not set(batch) <= set(known)]


def left_padded(
    sequences: Sequence[Sequence[int]], device: torch.device, after: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and position ids, each (rows, longest), padded on the left.

    With `after`, the rows go on after so many tokens that a cache holds: ids and positions are
    those of the rest, the mask is for all. With the ends aligned, the next token of every row is at
    the same place. Without the mask, or without positions counted from each row's own start, a
    batch answers otherwise than one by one.
    """
    rests = [row[after:] for row in sequences]
    longest = max(map(len, rests))
    ids = torch.zeros(len(rests), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rests):
        start = longest - len(row)
        ids[number, start:] = torch.tensor(row)
        mask[number, start:] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0) + after
    mask = F.pad(mask, (after, 0), value=1)
    return ids.to(device), mask.to(device), positions.to(device)


def read_beginning(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], most: Sequence[int], new: int = 0
) -> tuple[int, Cache | None]:
    """Reads once what all rows (token ids) begin with: how many tokens, and a cache of them with a
    place for each row. (0, None) where that would save little; never more than `most` of each row.

    The blanks stand between the beginning and the rest then, and transformers' sliding windows
    count them: rows that with their `new` tokens go beyond the model's window are read whole.
    """
    window = getattr(model.config, "sliding_window", None)
    if window is not None and max(map(len, rows)) + new > window:
        return 0, None
    shared = shared_beginning(rows, most)
    if shared < SHORTEST_SHARED or shared * (len(rows) - 1) < _WORTH_A_PASS:
        return 0, None
    ids = torch.tensor([rows[0][:shared]], device=model.device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(rows))
    return shared, cache


def before_needed(labels: Sequence[int]) -> int:
    """How many tokens of a row stand before the first whose logits are needed: the one before the
    first label. All but one, where nothing is labelled."""
    return next((n for n, one in enumerate(labels) if n and one != IGNORED), len(labels)) - 1


def shared_beginning(rows: Sequence[Sequence[int]], most: Sequence[int]) -> int:
    """How many tokens all rows begin with in common, never more than `most` of each."""
    # What the least and the greatest have in common, all have.
    return min(common_beginning(min(rows), max(rows)), *most)


def common_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def _halves(rows: list[int], error: RuntimeError) -> list[list[int]]:
    if len(rows) == 1:
        raise ResourceError(
            "out of memory with one row at a time",
            str(error).splitlines()[0],
            "use a smaller or quantised model, or shorten the rows and answers",
        ) from error
    _log.info("out of memory with %d rows at once: half of them from here on", len(rows))
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)
