"""The tables of benchmarks/gpu.py: Markdown that appears line by line, and what is in a line."""

import re
import sys
from collections.abc import Callable, Sequence

from measuring import Cost

GB = 10**9
PREDICTION_BAR, LOSS_TOLERANCE = 0.15, 0.01

# Columns of memory, in bytes; the last is what a prediction and a peer are compared with. What a
# process takes of a card is what torch's allocator reserved and CUDA's own context beside it.
Memory = dict[str, Callable[[Cost], int]]
RESIDENT: Memory = {"resident GB": lambda cost: cost.peak}
CARD: Memory = {
    "allocated GB": lambda cost: cost.results["allocated"],
    "reserved GB": lambda cost: cost.results["reserved"],
    "of the card GB": lambda cost: cost.results["card"],
}


class Table:
    """A table that is on the screen as far as it is measured; a line that failed says why."""

    def __init__(self, title: str, headers: Sequence[str]) -> None:
        self.failures, self._columns = 0, len(headers)
        print(f"\n**{title}**\n")
        _print(headers)
        _print(["---", *["---:"] * (len(headers) - 1)])

    def add(self, label: str, cost: Cost, figures: Callable[[Cost], Sequence[str]]) -> None:
        """The line of one finished process; `figures` is asked only where it ended well."""
        if cost.returncode == 0:
            _print([label, *figures(cost)])
            return
        self.failures += 1
        _print([label, _failure(cost), *["-"] * (self._columns - 2)])
        print(cost.output[-3000:], file=sys.stderr)


def _print(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _failure(cost: Cost) -> str:
    if "out of memory" in cost.output.lower():
        return "out of memory"
    return f"failed, exit {cost.returncode}"


def peak(memory: Memory, cost: Cost) -> int:
    """Bytes: the last column of `memory`."""
    *_, last = memory.values()
    return last(cost)


def gigabytes(memory: Memory, cost: Cost) -> list[str]:
    return [f"{column(cost) / GB:.2f}" for column in memory.values()]


def prediction(memory: Memory, cost: Cost, names: Sequence[str]) -> list[str]:
    """GB that --dry-run said, and how far off: of these lines the largest, for models in turn."""
    said = re.findall(rf"(?:{'|'.join(names)}): about ([\d.]+) GB", cost.output)
    predicted = max(map(float, said))
    off = predicted * GB / peak(memory, cost) - 1
    within = abs(off) <= PREDICTION_BAR
    return [f"{predicted:.2f}", judged(f"{off:+.0%}", f"{PREDICTION_BAR:.0%}", within)]


def losses(found: Sequence[float], ours: Sequence[float]) -> str:
    """The largest relative difference of any step's loss."""
    if len(found) != len(ours):
        return f"{len(found)} STEPS, NOT {len(ours)}"
    off = max(abs(one - two) / abs(two) for one, two in zip(found, ours, strict=True))
    return judged(f"{off:.3%}", f"{LOSS_TOLERANCE:.0%}", off <= LOSS_TOLERANCE)


def judged(figure: str, bar: str, met: bool) -> str:
    """A figure with its bar beside it."""
    return f"{figure} (bar {bar}: {'met' if met else 'MISSED'})"
