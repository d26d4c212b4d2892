"""What the token counts of an account add up to: percentiles, shares, padding, a histogram."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slimtune.data.account import SPLITS, Account

_BARS = 40
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def token_numbers(account: Account, batch_size: int) -> dict[str, Any]:
    """Lengths of the written conversations under the training template, and what they cost.

    Works on the account's arrays of integers (9 bytes a conversation), never on rows.
    """
    lengths = np.frombuffer(account.tokens, dtype=account.tokens.typecode)
    supervised = np.frombuffer(account.supervised, dtype=account.supervised.typecode)
    places = np.frombuffer(account.token_splits, dtype=account.token_splits.typecode)
    of_split = {name: places == index for index, name in enumerate(SPLITS)}
    return {
        **percentiles(lengths),
        "total": int(lengths.sum(dtype=np.int64)),
        "supervised_share": _share(supervised, lengths),
        "truncated_share": truncated_share(account.long_rows),
        "padding_saved": padding_saved(lengths[of_split["train"]], batch_size),
        "batch_size": batch_size,
        "splits": {
            name: {
                "conversations": int(chosen.sum()),
                **percentiles(lengths[chosen]),
                "supervised_share": _share(supervised[chosen], lengths[chosen]),
            }
            for name, chosen in of_split.items()
        },
        "histogram": histogram({name: lengths[chosen] for name, chosen in of_split.items()}),
    }


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """p of n values: the smallest that at least p * n of them do not exceed; 0 of nothing."""
    ordered = np.sort(np.asarray(lengths))
    places = {name: max(math.ceil(share * len(ordered)) - 1, 0) for name, share in _SHARES.items()}
    return {name: int(ordered[place]) if len(ordered) else 0 for name, place in places.items()}


def padding_saved(lengths: Sequence[int], batch_size: int) -> float:
    """1 - sum(lengths) / sum over batches of (rows in the batch * its longest row).

    The share of positions that padded training would compute for nothing, in batches of
    `batch_size` rows in file order; training here pads nothing. 0 of nothing.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return 0.0
    starts = np.arange(0, len(lengths), batch_size)
    rows = np.diff(np.append(starts, len(lengths)))
    padded = (rows * np.maximum.reduceat(lengths, starts)).sum()
    return round(1 - float(lengths.sum() / padded), 4)


def truncated_share(long_rows: Mapping[str, int]) -> float:
    """Of the rows that were measured and kept, the share that lost some of its prompt."""
    return round(long_rows.get("shortened", 0) / max(sum(long_rows.values()), 1), 4)


def histogram(lengths: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Conversations a bar: `edges` (bars + 1, whole tokens, equally wide) and a list a split."""
    longest = max((int(max(values)) for values in lengths.values() if len(values)), default=0)
    width = longest // _BARS + 1
    edges = np.arange(0, longest + width + 1, width)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in lengths.items()}
    return {"edges": edges.tolist(), **counts}


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    total = int(whole.sum(dtype=np.int64))
    return round(int(part.sum(dtype=np.int64)) / max(total, 1), 4)
