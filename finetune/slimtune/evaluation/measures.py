"""How good answers are: first what counts in a text, then each measure as one function of its name.

The table of measures (report/measures.yaml) names the functions and says how each is called:

    over answer    name(prediction, reference, pattern) -> percent, 0 to 100
    over corpus    name() -> the sacreBLEU metric, for all rows together
    over losses    name(losses, sizes) -> Estimate; sizes are the answers' UTF-8 bytes
    over divergences   name(losses) -> Estimate, of the rows that were compared with an original

A new pattern is one expression with one group here, and one entry of config/catalogues.yaml.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from slimtune.config.catalogues import bind
from slimtune.evaluation.bootstrap import Estimate, mean
from slimtune.inference.answers import AnswerLoss

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

# Text is looked at in NFKC, so there are no full-width signs.
_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
_LETTER = r"([A-J])(?![A-Za-z'’])"
_DECIDED = r"(?:answer|option|choice)(?:\s+is)?|答案|选项|选择|故选|应选|选"

# Of each list the first expression that finds something decides, by its last find in the text.
_EXPRESSIONS: dict[str, tuple[re.Pattern[str], ...]] = {
    "whole": (),
    "number": (re.compile(_NUMBER),),
    "gsm8k": (re.compile(r"####\s*[$¥]?\s*" + _NUMBER),),
    "option": (
        re.compile(rf"(?i:{_DECIDED})\s*(?:是|为|应为|应该是)?\s*:?\s*[(\[]?\s*{_LETTER}"),
        re.compile(rf"^\W*{_LETTER}(?=\s*(?:[.)\]:、,。]|$))"),
        re.compile(rf"[(\[]\s*{_LETTER}\s*[)\]]"),
        re.compile(rf"(?<![A-Za-z]){_LETTER}\W*$"),
    ),
}
PATTERNS = bind("patterns", _EXPRESSIONS)


def extract(text: str, pattern: str) -> str | None:
    """The part of `text` that counts, None where the pattern finds none.

    Numbers come without thousands separators and closing zeros: `1,200.50` is `1200.5`.
    """
    if not PATTERNS[pattern]:
        return text
    plain = unicodedata.normalize("NFKC", text).replace("−", "-")
    for expression in PATTERNS[pattern]:
        found = expression.findall(plain)
        if found:
            return found[-1] if pattern == "option" else _plain_number(found[-1])
    return None


def _plain_number(written: str) -> str:
    number = written.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


# Han, kana and the marks written like them: scripts without spaces, so each character is a word.
CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{CJK}]|(?:(?![{CJK}])[^\W_])+")
_BESIDE_CJK = re.compile(rf"\s+(?=[{CJK}])|(?<=[{CJK}])\s+")
_MARKS = "".join(
    re.escape(chr(code))
    for code in range(0x10000)
    if unicodedata.category(chr(code)).startswith("P") and chr(code) not in "%.-"
)
# The point of 3.5 and the sign of -5 change an answer; a full stop, a dash or a comma does not.
_PUNCTUATION = re.compile(rf"[{_MARKS}]|\.(?!\d)|(?<=[a-z])\.|-(?!\.?\d)|(?<=[a-z0-9])-")


def word_tokens(text: str) -> list[str]:
    """The tokens of ROUGE: each CJK character, each run of other letters and digits.

    Width and case are folded (NFKC). On plain English these are rouge_score's tokens without
    stemming; on Chinese rouge_score has none.
    """
    return _WORD.findall(_folded(text))


def normalise(text: str) -> str:
    """`text` without what does not matter to an answer: width, case, punctuation and spacing.

    Punctuation separates (`1,2` is `1 2`, not `12`), except the decimal point and a number's sign.
    Symbols (`<`, `+`, `%`) are kept. A text of nothing but punctuation stays as it is.
    """
    folded = _folded(text)
    spaced = _BESIDE_CJK.sub("", _PUNCTUATION.sub(" ", folded))
    return " ".join(spaced.split()) or folded.strip()


def repeats(text: str) -> bool:
    """Whether `text` ends in a loop: one phrase at least four times over, 16 characters or more.

    The usual sign of a model that has not learned to stop, or was damaged by pruning or rounding.
    """
    tail = "".join(text.split())[-1024:]
    for period in range(1, len(tail) // 4 + 1):
        loop = max(4 * period, 16)
        if loop <= len(tail) and tail[-loop:-period] == tail[-loop + period :]:
            return True
    return False


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()


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
    left, right = word_tokens(prediction), word_tokens(reference)
    if max(len(left), len(right)) < n:
        return _whole(prediction, reference)
    first, second = Counter(_ngrams(left, n)), Counter(_ngrams(right, n))
    return 200.0 * (first & second).total() / (first.total() + second.total())


def rouge_1(prediction: str, reference: str, pattern: str = "whole") -> float:
    """ROUGE over single words; all of them count, whatever the pattern."""
    return rouge_n(prediction, reference, 1)


def rouge_2(prediction: str, reference: str, pattern: str = "whole") -> float:
    """ROUGE over pairs of neighbouring words; all of them count, whatever the pattern."""
    return rouge_n(prediction, reference, 2)


def rouge_l(prediction: str, reference: str, pattern: str = "whole") -> float:
    """F1 = 2·LCS(P, R) / (|P| + |R|), the longest common subsequence in words (Lin 2004).

    All words count, whatever the pattern.
    """
    left, right = word_tokens(prediction), word_tokens(reference)
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


def bleu() -> "BLEU":
    """BLEU of mixed text (Papineni et al. 2002), by sacreBLEU.

    The `zh` tokenizer splits Chinese into characters and the rest as `13a` does; the effective
    order spares answers of fewer than four words a score of 0.
    """
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh", effective_order=True)


def chrf() -> "CHRF":
    """chrF2, which needs no tokenizer (Popovic 2015), by sacreBLEU."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def token_accuracy(losses: Sequence[AnswerLoss], sizes: Sequence[int]) -> Estimate:
    """100 · Σ hits / Σ tokens: a long answer weighs more than a short one."""
    shares = [100 * one.hits / one.tokens for one in losses]
    return mean(shares, [one.tokens for one in losses], percent=True)


def perplexity(losses: Sequence[AnswerLoss], sizes: Sequence[int]) -> Estimate:
    """exp(Σ nats / Σ tokens)."""
    per_token = [one.nats / one.tokens for one in losses]
    return mean(per_token, [one.tokens for one in losses]).exp()


def bits_per_byte(losses: Sequence[AnswerLoss], sizes: Sequence[int]) -> Estimate:
    """Σ nats / ln 2 / Σ sizes."""
    per_byte = [one.nats / log(2) / size for one, size in zip(losses, sizes, strict=True)]
    return mean(per_byte, sizes)


def kl_divergence(losses: Sequence[AnswerLoss]) -> Estimate:
    """Σ KL(original ‖ model) / Σ tokens, in nats: the mean over tokens, as llama-perplexity has it.

    Over the whole vocabulary at each token: errors that cancel in the perplexity stay here.
    """
    per_token = [one.divergence / one.compared for one in losses]
    return mean(per_token, [one.compared for one in losses])


def first_choice_agreement(losses: Sequence[AnswerLoss]) -> Estimate:
    """100 · Σ agreed / Σ tokens: where the likeliest token is the original's."""
    shares = [100 * one.agreed / one.compared for one in losses]
    return mean(shares, [one.compared for one in losses], percent=True)


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
    said, wanted = (
        sum(len(word_tokens(text)) for text in texts) for texts in (predictions, references)
    )
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
