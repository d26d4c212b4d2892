"""The least loss for a number of bytes, and the fewest bytes for a loss: one type for each matrix.

    least Σ loss(m, type_m)  with  Σ bytes(m, type_m) ≤ budget

is the knapsack of several choices (Sinha and Zoltners 1979), solved matrix after matrix for all
sizes at once: best[s] = min over types of before[s − bytes] + loss. Walking down the convex hulls
of the matrices, steepest step first, is quicker, and loses where one matrix is large: of
stories260K at Q4_K_M's bytes the embedding's step no longer fitted, and the KL divergence was 0.018
where 0.013 was to be had. Losses of matrices add up: errors are taken to be independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Type

_PLACES = 1 << 16  # sizes that are told apart; in larger units options are rounded up


@dataclass(frozen=True)
class Option:
    """A type for a tensor: the bytes it takes in the file, the loss expected of it in nats."""

    type: Type
    bytes: int
    loss: float


Choices = dict[str, Option]


@dataclass(frozen=True)
class Allocation:
    """A type for each matrix, and what it is expected to cost.

    `predicts`: whether losses are nats a token; else they are shares that only rank the choices.
    """

    options: Choices
    predicts: bool = False

    @property
    def bytes(self) -> int:
        return sum(option.bytes for option in self.options.values())

    @property
    def loss(self) -> float | None:
        """KL divergence to the model itself in nats a token, None where nobody knows."""
        return total_loss(self.options) if self.predicts else None


def total_loss(choices: Choices) -> float:
    return sum(option.loss for option in choices.values())


def total_bytes(choices: Choices) -> int:
    return sum(option.bytes for option in choices.values())


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """Those of ever more bytes and ever less loss: no other is smaller and loses no more."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.bytes, one.loss)):
        if not found or option.loss < found[-1].loss:
            found.append(option)
    return found


class Frontier:
    """The best choices of every size up to `most` bytes; bytes are those of the matrices alone."""

    def __init__(self, options: Mapping[str, Sequence[Option]], most: int | None = None) -> None:
        self._options = {name: worthwhile(found) for name, found in options.items()}
        self.smallest = {name: found[0] for name, found in self._options.items()}
        self.best = {name: found[-1] for name, found in self._options.items()}
        self._least = total_bytes(self.smallest)
        room = total_bytes(self.best) - self._least
        room = room if most is None else min(room, most - self._least)
        self._possible = room >= 0
        extra = [o.bytes - found[0].bytes for found in self._options.values() for o in found]
        unit = math.gcd(*extra) or 1
        self._unit = unit * -(-max(room, 1) // (unit * _PLACES))
        self._best, self._taken = self._solve(max(room, 0) // self._unit + 1)

    def within_bytes(self, most: int) -> Choices | None:
        """The least loss in `most` bytes; None where even the smallest types take more."""
        if not self._possible or most < self._least:
            return None
        if most >= total_bytes(self.best):
            return self.best
        places = min(len(self._best), (most - self._least) // self._unit + 1)
        return self._choices(int(self._best[:places].argmin()))

    def within_loss(self, most: float) -> Choices | None:
        """The fewest bytes that lose no more than `most`; None where nothing loses so little."""
        enough = np.flatnonzero(self._best <= most)
        if len(enough):
            return self._choices(int(enough[0]))
        return self.best if total_loss(self.best) <= most else None

    def _solve(self, places: int) -> tuple[np.ndarray, np.ndarray]:
        """(least loss of each size, the option that each matrix has in it)."""
        best = np.zeros(places)
        taken = np.zeros((len(self._options), places), np.uint8)
        for number, options in enumerate(self._options.values()):
            before, best = best, best + options[0].loss
            for place, option in enumerate(options[1:], 1):
                units = self._units(option, options[0])
                if units >= places:
                    break
                found = before[: places - units] + option.loss
                better = found < best[units:]
                best[units:][better] = found[better]
                taken[number, units:][better] = place
        return best, taken

    def _choices(self, place: int) -> Choices:
        chosen: Choices = {}
        for number, name in reversed(list(enumerate(self._options))):
            options = self._options[name]
            chosen[name] = options[self._taken[number, place]]
            place -= self._units(chosen[name], options[0])
        return {name: chosen[name] for name in self._options}

    def _units(self, option: Option, smallest: Option) -> int:
        return -(-(option.bytes - smallest.bytes) // self._unit)
