"""Answer scores against independent references: a table, counts by hand, known values."""

import random
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from slimtune.evaluation import bootstrap, measures
from slimtune.evaluation.measures import normalise, repeats, word_tokens

PARTS = ["北", "京", "爱", "我", "cat", "dog", "42", "Q4", "的", "hello"]


def mixed_texts(count: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(PARTS, k=random_.randint(1, 25))) for _ in range(count)]


def lcs_by_table(left: list[str], right: list[str]) -> int:
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            best = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else best
    return int(table[-1, -1])


def test_words_are_characters_of_chinese_and_words_of_english():
    assert word_tokens("Hello，世界！Q4_K_M、３．５公里") == [
        "hello", "世", "界", "q4", "k", "m", "3", "5", "公", "里",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("The answer is 42.", "the answer is  42", True),
        ("ＡＢＣ，１２", "abc,12", True),
        ("北京 上海", "北京上海。", True),
        ("5 公里", "5公里", True),
        ("**Paris**", "Paris", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("答案是-5。", "答案是5", False),
        ("1,2,3", "12,3", False),
        ("a < b", "a > b", False),
        ("50%", "50", False),
        ("", "?", False),
        ("\u22125", "-5", True),
    ],
)
def test_exact_match_forgives_form_and_nothing_else(prediction, reference, same):
    assert (measures.exact_match(prediction, reference) == 100.0) is same


def test_normalise_keeps_a_text_of_punctuation():
    assert normalise(" ?! ") == "?!"


def test_rouge_l_equals_the_table_on_mixed_pairs():
    for left, right in zip(mixed_texts(200, 1), mixed_texts(200, 2), strict=True):
        a, b = word_tokens(left), word_tokens(right)
        length = lcs_by_table(a, b)
        assert measures.longest_common_subsequence(a, b) == length
        assert measures.rouge_l(left, right) == pytest.approx(200 * length / (len(a) + len(b)))


def test_rouge_n_equals_precision_and_recall_by_hand():
    for left, right in zip(mixed_texts(100, 3), mixed_texts(100, 4), strict=True):
        grams = [
            Counter(zip(t, t[1:], strict=False)) for t in (word_tokens(left), word_tokens(right))
        ]
        if not (grams[0] and grams[1]):
            continue
        common = sum(min(count, grams[1][gram]) for gram, count in grams[0].items())
        precision, recall = (common / sum(g.values()) for g in grams)
        f1 = 2 * precision * recall / (precision + recall) if common else 0.0
        assert measures.rouge_n(left, right, 2) == pytest.approx(100 * f1)


ENGLISH = ["cat", "dog", "sat", "mat", "the", "ran", "42", "q4", "hello", "world"]
CHINESE = list("北京爱我的猫狗鱼天气好")


def random_pairs(count: int, parts: list[str], seed: int) -> list[tuple[str, str]]:
    """Pairs that share words, gaps and order to every degree; punctuation in between."""
    chance = random.Random(seed)
    spaces = [" ", " ", ", ", "。"]

    def text(words_: list[str]) -> str:
        return "".join(word + chance.choice(spaces) for word in words_)

    pairs = []
    for _ in range(count):
        reference = chance.choices(parts, k=chance.randint(1, 30))
        kept = [word for word in reference if chance.random() < 0.7]
        noise = chance.choices(parts, k=chance.randint(0, 8))
        mixed = kept + noise if chance.random() < 0.5 else noise + kept
        pairs.append((text(mixed or ["hello"]), text(reference)))
    return pairs


def latin(text: str) -> str:
    """Our words as rouge-score sees them: it knows a-z and 0-9 only, so each character is spelt."""
    return " ".join(word if word.isascii() else f"u{ord(word):x}" for word in word_tokens(text))


PAIRS = (
    random_pairs(200, ENGLISH, 1)
    + random_pairs(150, CHINESE, 2)
    + random_pairs(150, ENGLISH + CHINESE, 3)
)


def test_rouge_equals_rouge_score_on_500_pairs():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score not installed")
    peer = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    compared = 0
    for prediction, reference in PAIRS:
        theirs = peer.score(latin(reference), latin(prediction))
        ours = {
            "rouge1": measures.rouge_n(prediction, reference, 1),
            "rouge2": measures.rouge_n(prediction, reference, 2),
            "rougeL": measures.rouge_l(prediction, reference),
        }
        if min(len(word_tokens(prediction)), len(word_tokens(reference))) < 2:
            del ours["rouge2"]  # no pair of words to share: equal texts are 100 here, 0 there
        for name, score in ours.items():
            assert score == pytest.approx(100 * theirs[name].fmeasure), (prediction, reference)
            compared += 1
    assert compared > 1400


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_scores_equal_sacrebleu_on_500_pairs(name):
    peers = {
        "bleu": lambda *texts: sacrebleu.corpus_bleu(
            *texts, tokenize="zh", use_effective_order=True
        ),
        "chrf": sacrebleu.corpus_chrf,
    }
    for start in range(0, 500, 50):
        predictions, references = zip(*PAIRS[start : start + 50], strict=True)
        ours = corpus_score(name, predictions, references)
        theirs = peers[name](list(predictions), [list(references)]).score
        assert ours == pytest.approx(theirs)


def corpus_score(name: str, predictions, references) -> float:
    metric = getattr(measures, name)()
    return bootstrap.corpus(metric, predictions, [[one] for one in references], resamples=2).score


SCORES = [
    measures.exact_match,
    measures.rouge_l,
    lambda p, r: measures.rouge_n(p, r, 1),
    lambda p, r: measures.rouge_n(p, r, 2),
    lambda p, r: corpus_score("bleu", [p], [r]),
    lambda p, r: corpus_score("chrf", [p], [r]),
]


@pytest.mark.parametrize("score", SCORES)
def test_identical_is_100_disjoint_is_0_empty_is_0(score):
    for text in ("42", "北京", "我爱北京天安门 and tea", "one two three four five"):
        assert score(text, text) == pytest.approx(100)
        assert score("", text) == 0
    assert score("猫狗鱼", "abcdef ghij") == 0


@pytest.mark.parametrize(
    ("pattern", "prediction", "reference", "same"),
    [
        ("gsm8k", "3 + 4 = 7\n#### 7", "so she has\n#### 7", True),
        ("gsm8k", "#### 1,200.50", "#### 1200.5", True),
        ("gsm8k", "#### $18", "#### 18", True),
        ("gsm8k", "#### 8", "#### 7", False),
        ("gsm8k", "the answer is 7", "#### 7", False),
        ("gsm8k", "plain text", "Plain text.", True),  # a reference without #### counts whole
        ("number", "first 3, then 12.0 km", "12", True),
        ("number", "−5 度", "-5", True),
        ("number", "none", "12", False),
        ("option", "The answer is (B).", "B", True),
        ("option", "B. because A is wrong", "B", True),
        ("option", "答案是：Ｂ", "B", True),
        ("option", "因此选C。", "C", True),
        ("option", "A cat sat, so I'd say D", "D", True),
        ("option", "A cat sat there", "A", False),
        ("option", "The answer is Banana", "B", False),
    ],
)
def test_a_pattern_finds_what_counts(pattern, prediction, reference, same):
    assert (measures.exact_match(prediction, reference, pattern) == 100) is same


def test_health_counts_empty_endless_and_looping_answers():
    loop = "我不知道。" * 6
    answers, references = ["", "fine", loop, "10000"], ["a b", "c", "我不知道。", "10000"]
    found = measures.health(answers, [True, True, False, True], references)
    assert (found.empty, found.without_eos, found.repeating) == (25, 25, 25)
    assert found.length_ratio == (0 + 1 + 24 + 1) / (2 + 1 + 4 + 1)


def test_repeats_wants_a_loop_at_the_end():
    assert repeats("so: " + "la la " * 10)
    assert not repeats("la la " * 10 + "and that was the end of the song")
    assert not repeats("1000000000")
