"""How far a measure would swing with other test rows, and whether two models differ at all.

Rows are drawn with replacement, as many as there are, RESAMPLES times (Efron 1979). The draws are
the same for every model, so that the difference of two models is taken row by row: what makes a
row hard for both does not count (paired bootstrap; Koehn 2004).

Where every row is right or wrong, the interval of one model is Wilson's (1927): ten wrong answers
in a row are drawn as ten wrong ones again and again, and would stand there as "0.0 to 0.0".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

Verdict = Literal["better", "worse", "no clear change"]

RESAMPLES = 1000
SEED = 20240229
_BLOCK = 1 << 16  # indices drawn at once: half a megabyte
_TAILS = (2.5, 97.5)  # percentiles: a 95 % interval
_QUANTILE = NormalDist().inv_cdf(_TAILS[1] / 100)


@dataclass(frozen=True)
class Estimate:
    """A measure over all rows, and over each draw of rows.

    `trials` is the number of rows where the score is the percentage of those that are right (with
    weights the number of equal ones that swing as much), else None.
    """

    score: float
    draws: np.ndarray
    trials: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: Wilson's where there are trials, else by percentiles of the draws."""
        if self.trials is not None:
            return wilson(self.score, self.trials)
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
    percent: bool = False,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Σwv / Σw over rows, every weight 1 if none are given; `percent`: values lie in 0 to 100."""
    value = np.asarray(values, float)
    weight = np.ones(len(value)) if weights is None else np.asarray(weights, float)
    weighted = value * weight
    draws = [
        weighted[rows].sum(1) / weight[rows].sum(1) for rows in _draws(len(value), resamples, seed)
    ]
    right_or_wrong = percent and bool(np.isin(value, (0.0, 100.0)).all())
    trials = float(weight.sum() ** 2 / (weight**2).sum()) if right_or_wrong else None
    return Estimate(float(weighted.sum() / weight.sum()), np.concatenate(draws), trials)


def wilson(percent: float, trials: float) -> tuple[float, float]:
    """(p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n), the 95 % interval of a percentage.

    p = percent / 100, n = trials, z = 1.96; both ends in percent. Never empty, and never beyond 0
    or 100. Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    p, z2 = percent / 100, _QUANTILE**2
    middle = p + z2 / (2 * trials)
    reach = _QUANTILE * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    whole = 1 + z2 / trials
    low, high = 100 * (middle - reach) / whole, 100 * (middle + reach) / whole
    return max(low, 0.0), min(high, 100.0)


def corpus(
    metric: "BLEU | CHRF",
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
    drawn = (counts[rows].sum(1) for rows in _draws(len(counts), resamples, seed))
    draws = np.array([score(one) for some in drawn for one in some])
    whole = score(counts.sum(0))
    # No draw tells how far the score would swing: then as if each row were right or wrong.
    same = whole in (0.0, 100.0) and bool((draws == whole).all())
    return Estimate(whole, draws, float(len(counts)) if same else None)


def verdict(candidate: Estimate, baseline: Estimate, *, higher_is_better: bool = True) -> Verdict:
    """Whether the 95 % interval of the difference of the two leaves out 0, and to which side.

    What is no number comes from damaged weights: it is worse than any number.
    """
    broken, other_broken = math.isnan(candidate.score), math.isnan(baseline.score)
    if broken or other_broken:
        return "no clear change" if broken == other_broken else "worse" if broken else "better"
    _, low, high = difference(candidate, baseline)
    if low <= 0 <= high:
        return "no clear change"
    return "better" if (low > 0) == higher_is_better else "worse"


def difference(candidate: Estimate, baseline: Estimate) -> tuple[float, float, float]:
    """candidate - baseline over the same rows, with the ends of its 95 % interval."""
    low, high = np.percentile(candidate.draws - baseline.draws, _TAILS)
    return candidate.score - baseline.score, float(low), float(high)


def _draws(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """The indices of the rows drawn, as blocks of (draws, rows): the same ones in any blocks.

    One draw at a time spends its time in Python, all at once would take resamples x rows indices of
    memory.
    """
    random = np.random.default_rng(seed)
    most = max(1, _BLOCK // max(1, rows))
    for start in range(0, resamples, most):
        yield random.integers(rows, size=(min(most, resamples - start), rows))


def _of_counts(metric: "BLEU | CHRF") -> Callable[[np.ndarray], float]:
    # Identical texts come out as 100.00000000000004.
    return lambda counts: min(metric._compute_score_from_stats(counts.tolist()).score, 100.0)
