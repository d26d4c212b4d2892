"""Measures of answers: pure functions of texts and numbers. Scores are percentages, 0 to 100."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from slimtune.evaluation.answers import AnswerLoss
from slimtune.evaluation.text import normalise, repeats, words

Verdict = Literal["better", "worse", "no clear change"]

RESAMPLES = 1000
SEED = 20240229


def exact_match(prediction: str, reference: str) -> float:
    """100 if both say the same apart from width, case, punctuation and spacing, else 0."""
    return 100.0 * (normalise(prediction) == normalise(reference))


def rouge_n(prediction: str, reference: str, n: int) -> float:
    """F1 = 2·|P ∩ R| / (|P| + |R|) over the n-grams (as bags) of prediction P and reference R.

    Texts of fewer than n words on both sides are compared whole, so that equal ones score 100.
    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    left, right = words(prediction), words(reference)
    if max(len(left), len(right)) < n:
        return _whole(prediction, reference)
    first, second = Counter(_ngrams(left, n)), Counter(_ngrams(right, n))
    return 200.0 * (first & second).total() / (first.total() + second.total())


def rouge_l(prediction: str, reference: str) -> float:
    """F1 = 2·LCS(P, R) / (|P| + |R|), the longest common subsequence in words (Lin 2004)."""
    left, right = words(prediction), words(reference)
    if not left and not right:
        return _whole(prediction, reference)
    return 200.0 * longest_common_subsequence(left, right) / (len(left) + len(right))


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """LCS length in |right| big-integer steps: one bit of `unmatched` per word of `left`.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for position, word in enumerate(left):
        places[word] = places.get(word, 0) | (1 << position)
    every = (1 << len(left)) - 1
    unmatched = every
    for word in right:
        hit = unmatched & places.get(word, 0)
        unmatched = ((unmatched + hit) | (unmatched - hit)) & every
    return len(left) - unmatched.bit_count()


@dataclass(frozen=True)
class CorpusScore:
    """A score over all rows together, with the signature that lets others compute the same."""

    score: float
    signature: str


def bleu(predictions: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus BLEU (Papineni et al. 2002), by sacreBLEU.

    Its `zh` tokenizer splits Chinese into characters and the rest as `13a`; the effective order
    spares answers of fewer than four words a score of 0.
    """
    metric = BLEU(tokenize="zh", effective_order=True)
    return _corpus_score(metric, predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus chrF2 (Popović 2015), by sacreBLEU: character n-grams, needs no tokenizer."""
    return _corpus_score(CHRF(), predictions, references)


def perplexity(losses: Sequence[AnswerLoss]) -> float:
    """exp(Σ nats / Σ tokens): each token counts once, so a long answer weighs more than a short."""
    tokens = sum(loss.tokens for loss in losses)
    nats = sum(loss.nats for loss in losses) / max(tokens, 1)
    return math.exp(min(nats, 700.0))  # beyond, exp overflows: the model is broken anyway


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Σwv / Σw, every weight 1 if none are given."""
    return float(np.average(np.asarray(values, float), weights=weights))


def interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """95 % interval of Σwv/Σw by bootstrap over rows (percentiles; Efron 1979)."""
    value, weight = np.asarray(values, float), _weights(values, weights)
    means = _resampled_means(value * weight, weight, resamples, seed)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def compare_pairs(
    candidate: Sequence[float],
    baseline: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    higher_is_better: bool = True,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Verdict:
    """Whether `candidate` differs from `baseline` on the same rows, at the 95 % level.

    The paired bootstrap (Koehn 2004): the interval of the mean difference, row by row, must not
    hold 0. Pairing removes what makes some rows hard for every model.
    """
    difference = np.asarray(candidate, float) - np.asarray(baseline, float)
    low, high = interval(difference, weights, resamples=resamples, seed=seed)
    if low <= 0 <= high:
        return "no clear change"
    return "better" if (low > 0) == higher_is_better else "worse"


@dataclass(frozen=True)
class Health:
    """Shares of answers, in percent, that point to a damaged model or a wrong template."""

    empty: float
    without_eos: float
    repeating: float


def health(predictions: Sequence[str], stopped: Sequence[bool]) -> Health:
    """How many answers are empty, ran into the token limit, or end in a loop."""
    return Health(
        empty=_share([not text.strip() for text in predictions]),
        without_eos=_share([not done for done in stopped]),
        repeating=_share([repeats(text) for text in predictions]),
    )


def _whole(prediction: str, reference: str) -> float:
    return exact_match(prediction, reference) if prediction.strip() else 0.0


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def _corpus_score(
    metric: BLEU | CHRF, predictions: Sequence[str], references: Sequence[str]
) -> CorpusScore:
    score = metric.corpus_score(list(predictions), [list(references)]).score
    # Identical texts come out as 100.00000000000004.
    return CorpusScore(min(float(score), 100.0), str(metric.get_signature()))


def _weights(values: Sequence[float], weights: Sequence[float] | None) -> np.ndarray:
    return np.ones(len(values)) if weights is None else np.asarray(weights, float)


def _resampled_means(
    weighted: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    # One draw at a time: all at once would take resamples x rows indices of memory.
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for draw in range(resamples):
        rows = random.integers(len(weights), size=len(weights))
        means[draw] = weighted[rows].sum() / weights[rows].sum()
    return means


def _share(flags: Sequence[bool]) -> float:
    return 100.0 * sum(flags) / len(flags)
