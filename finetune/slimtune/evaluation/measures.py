"""Measures of answers: pure functions of texts and numbers. Scores are percentages, 0 to 100."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU, CHRF

from slimtune.evaluation.extraction import extract
from slimtune.evaluation.text import normalise, repeats, words

# Over all rows together. The `zh` tokenizer splits Chinese into characters and the rest as `13a`
# does; the effective order spares answers of fewer than four words a score of 0. chrF2 needs no
# tokenizer. Papineni et al. 2002; Popovic 2015; by sacreBLEU.
CORPUS_METRICS: dict[str, Callable[[], BLEU | CHRF]] = {
    "bleu": lambda: BLEU(tokenize="zh", effective_order=True),
    "chrf": CHRF,
}


def exact_match(prediction: str, reference: str, pattern: str = "whole") -> float:
    """100 if both say the same apart from width, case, punctuation and spacing, else 0.

    With a pattern only what it finds counts; a prediction in which it finds nothing is wrong, a
    reference in which it finds nothing counts whole.
    """
    wanted, said = extract(reference, pattern), extract(prediction, pattern)
    if wanted is None:
        wanted, said = reference, prediction
    return 100.0 * (said is not None and normalise(said) == normalise(wanted))


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
class Health:
    """Signs of a damaged model or a wrong template: shares of answers in percent, and the length
    of all answers together, in words, as a share of the references' (1: as long)."""

    empty: float
    without_eos: float
    repeating: float
    length_ratio: float


def health(
    predictions: Sequence[str], stopped: Sequence[bool], references: Sequence[str]
) -> Health:
    """How many answers are empty, ran into the token limit, or end in a loop; and how long."""
    said, wanted = (sum(len(words(text)) for text in texts) for texts in (predictions, references))
    return Health(
        empty=_share([not text.strip() for text in predictions]),
        without_eos=_share([not done for done in stopped]),
        repeating=_share([repeats(text) for text in predictions]),
        length_ratio=said / max(wanted, 1),
    )


def _whole(prediction: str, reference: str) -> float:
    return exact_match(prediction, reference) if prediction.strip() else 0.0


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def _share(flags: Sequence[bool]) -> float:
    return 100.0 * sum(flags) / len(flags)
