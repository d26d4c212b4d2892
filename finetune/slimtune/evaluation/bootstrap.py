"""How far a measure would swing with other test rows, and whether two models differ at all.

Rows are drawn with replacement, as many as there are, RESAMPLES times (Efron 1979). The draws are
the same for every model, so that the difference of two models is taken row by row: what makes a
row hard for both does not count (paired bootstrap; Koehn 2004).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

Verdict = Literal["better", "worse", "no clear change"]

RESAMPLES = 1000
SEED = 20240229
_TAILS = (2.5, 97.5)  # percentiles: a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A measure over all rows, and over each draw of rows."""

    score: float
    draws: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, by percentiles of the draws."""
        low, high = np.percentile(self.draws, _TAILS)
        return float(low), float(high)

    def exp(self) -> "Estimate":
        """e to the power of it: perplexity from nats a token."""
        # Beyond 700 exp overflows: the model is broken anyway.
        return Estimate(math.exp(min(self.score, 700.0)), np.exp(np.minimum(self.draws, 700.0)))


def mean(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Σwv / Σw over rows, every weight 1 if none are given."""
    value = np.asarray(values, float)
    weight = np.ones(len(value)) if weights is None else np.asarray(weights, float)
    weighted = value * weight
    draws = [
        weighted[rows].sum() / weight[rows].sum() for rows in _draws(len(value), resamples, seed)
    ]
    return Estimate(float(weighted.sum() / weight.sum()), np.array(draws))


def corpus(
    metric: BLEU | CHRF,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """sacreBLEU's score of all rows together; `references[r]` are the accepted texts of row r.

    corpus_score is these two steps; taken one by one, the draws need no second count of n-grams.
    """
    most = max(map(len, references))
    # A row with fewer references than others has None in the missing places.
    streams = [[one[n] if n < len(one) else None for one in references] for n in range(most)]
    counts = np.array(metric._extract_corpus_statistics(list(predictions), streams))
    score = _of_counts(metric)
    draws = [score(counts[rows].sum(0)) for rows in _draws(len(counts), resamples, seed)]
    return Estimate(score(counts.sum(0)), np.array(draws))


def verdict(candidate: Estimate, baseline: Estimate, *, higher_is_better: bool = True) -> Verdict:
    """Whether the 95 % interval of the difference of the two leaves out 0, and to which side."""
    low, high = np.percentile(candidate.draws - baseline.draws, _TAILS)
    if low <= 0 <= high:
        return "no clear change"
    return "better" if (low > 0) == higher_is_better else "worse"


def _draws(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    # One at a time: all at once would take resamples x rows indices of memory.
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield random.integers(rows, size=rows)


def _of_counts(metric: BLEU | CHRF) -> Callable[[np.ndarray], float]:
    # Identical texts come out as 100.00000000000004.
    return lambda counts: min(metric._compute_score_from_stats(counts.tolist()).score, 100.0)
