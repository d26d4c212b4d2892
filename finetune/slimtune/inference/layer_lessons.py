"""One layer alone learns to give what another gave, from streams of hidden states on disk.

error = |found - meant|² / |meant|² of each token. In memory are that layer, its gradients, AdamW's
two moments and one step's activations: what a model taught whole needs for all of its layers, this
needs for one (Li et al., arXiv:2102.05426, for rounded layers; here for cut ones as well).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from slimtune.inference.stack import Stack, Stream, TokenBatch

STEP_TOKENS = 2048  # tokens of one update: 8 rows of 256
_WARMUP = 10  # updates


@dataclass(frozen=True)
class Targets:
    """The hidden states of the model that teaches, of the channels that the learner has."""

    stream: Stream
    hidden: Sequence[int] | None = None

    def read(self, number: int) -> torch.Tensor:
        states = self.stream.read(number)
        return states if self.hidden is None else states[..., list(self.hidden)]


def shares(found: torch.Tensor, meant: torch.Tensor) -> torch.Tensor:
    """|found - meant|² / |meant|² of each token, (tokens,): a BOS whose states are a thousand times
    as large as the others' counts as one token, too."""
    tiny = torch.finfo(meant.dtype).tiny
    return (found - meant).square().sum(-1) / meant.square().sum(-1).clamp_min(tiny)


@torch.no_grad()
def flow(stack: Stack, layer: nn.Module, stream: Stream, numbers: Sequence[int]) -> None:
    """What is in `stream`, of the batches of these numbers, goes through one layer."""
    for number in numbers:
        stream.write(number, stack.run(layer, stream.read(number)))


class LayerLearner:
    """AdamW on the error, the rate rising over a few updates and falling as a cosine.

    A layer learns from all batches but the last `kept_aside`, and is judged by those; by all where
    none are.
    """

    def __init__(
        self,
        stack: Stack,
        batches: Sequence[TokenBatch],
        *,
        rate: float,
        epochs: float,
        seed: int,
        kept_aside: int = 0,
    ) -> None:
        self._stack, self._batches, self._rate, self._epochs = stack, batches, rate, epochs
        self._generator = torch.Generator().manual_seed(seed)
        learned = len(batches) - kept_aside
        self._judges = range(learned, len(batches)) if kept_aside else range(len(batches))
        self._steps = [
            (number, slice(start, start + rows))
            for number, batch in enumerate(batches[:learned])
            for rows in [max(1, STEP_TOKENS // batch.ids.shape[1])]
            for start in range(0, len(batch.ids), rows)
        ]

    @property
    def updates(self) -> int:
        """How often each layer's weights are moved."""
        return math.ceil(self._epochs * len(self._steps))

    def pass_over(self) -> None:
        """A layer that has learned already: those after it get the rows in the order they would."""
        for _ in self._order():
            pass

    def teach(
        self,
        layer: nn.Module,
        given: Stream,
        targets: Targets,
        as_used: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> tuple[float, float]:
        """The error before and after; a layer that came no closer is left as it was.

        Within `as_used()` the layer multiplies with what it will be used as; the optimizer moves
        its own weights.
        """
        before = self._error(layer, given, targets, as_used)
        start = {name: value.detach().clone() for name, value in layer.state_dict().items()}
        optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0, betas=(0.9, 0.95))
        for step, (number, rows) in enumerate(self._order()):
            rate = self._rate * min(1, (step + 1) / _WARMUP)
            fallen = (1 + math.cos(math.pi * step / self.updates)) / 2
            optimizer.param_groups[0]["lr"] = rate * fallen
            real = self._batches[number].real[rows]
            optimizer.zero_grad()
            with as_used():
                found = self._stack.run(layer, given.read(number)[rows])[real]
                shares(found, targets.read(number)[rows][real]).mean().backward()
            optimizer.step()
        after = self._error(layer, given, targets, as_used)
        if not after < before:
            layer.load_state_dict(start)
            after = before
        return before, after

    def _order(self) -> Iterator[tuple[int, slice]]:
        for step in range(self.updates):
            if step % len(self._steps) == 0:
                order = torch.randperm(len(self._steps), generator=self._generator).tolist()
            yield self._steps[order[step % len(self._steps)]]

    @torch.no_grad()
    def _error(
        self,
        layer: nn.Module,
        given: Stream,
        targets: Targets,
        as_used: Callable[[], AbstractContextManager[None]],
    ) -> float:
        """The error, mean over all real tokens that judge."""
        total = tokens = 0.0
        with as_used():
            for number in self._judges:
                real = self._batches[number].real
                found = self._stack.run(layer, given.read(number))[real]
                total += shares(found, targets.read(number)[real]).double().sum().item()
                tokens += len(found)
        return total / tokens
