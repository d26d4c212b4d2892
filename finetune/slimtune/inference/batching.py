"""Rows of different lengths in one forward pass: sorted, left-padded, masked, within a budget."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from slimtune.console import ResourceError, tenth_done
from slimtune.machine.refusals import is_out_of_memory

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


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
    done_is: str = "done",
) -> Iterator[tuple[int, Result]]:
    """(row, result) of `run(rows)` over all rows, in batches of at most `budget` tokens.

    `done_is` says in the log what has happened to a row, as in "34 of 340 rows answered".

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
            _log.info("%d of %d rows %s", done, len(lengths), done_is)


def unfinished(batches: Iterable[list[int]], known: Collection[int]) -> list[list[int]]:
    """The batches of which a row is still missing."""
    return [batch for batch in batches if not set(batch) <= set(known)]


def left_padded(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and position ids, each (rows, longest), padded on the left.

    With the ends aligned, the next token of every row is at the same place. Without the mask, or
    without positions counted from each row's own start, a batch answers otherwise than one by one.
    """
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(sequences):
        start = longest - len(row)
        ids[number, start:] = torch.tensor(row)
        mask[number, start:] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return ids.to(device), mask.to(device), positions.to(device)


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
