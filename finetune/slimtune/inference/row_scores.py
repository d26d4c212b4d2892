"""What the tokens of one answer lose, from a model's logits as they come, one token at a time.

Nothing here imports torch: llama.cpp's child process scores with it.
"""

from dataclasses import replace

import numpy as np

from slimtune.inference.answers import TokenLosses
from slimtune.inference.top_choices import Plan


class RowScores:
    """The losses of one row; with a plan its predictions are kept or compared as that says."""

    def __init__(self, plan: Plan | None) -> None:
        self._losses = TokenLosses([], [])
        self._seen = plan and plan.open()

    def add(self, logits: np.ndarray, token: int) -> None:
        """The logits (vocabulary,) at the next place, where `token` follows."""
        logs = _log_probabilities(logits)
        if self._seen is not None and len(self._losses.nats) in self._seen.plan.places:
            self._seen.add(logs)
        self._losses.nats.append(-float(logs[token]))
        self._losses.hits.append(int(logs.argmax()) == token)
        self._losses.margins.append(_lead(logs, token))

    def closed(self) -> TokenLosses:
        if self._seen is None:
            return self._losses
        self._seen.close()
        found = {"divergences": self._seen.divergences, "agreements": self._seen.agreements}
        return replace(self._losses, **found)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """ln p of every token, in nats."""
    wide = logits.astype(np.float64)
    top = wide.max()
    return wide - (top + np.log(np.exp(wide - top).sum()))


def _lead(logs: np.ndarray, token: int) -> float:
    """Nats by which a token leads the next likeliest, 0 where another does; `logs` lose it."""
    own, logs[token] = float(logs[token]), -np.inf
    return max(own - float(logs.max()), 0.0)
