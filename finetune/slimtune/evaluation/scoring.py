"""From answers to figures: scores of each row, measures of each model, verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import log
from typing import Any

from slimtune.evaluation import metrics
from slimtune.evaluation.answers import AnswerLoss, Outcome, Question

ROW_SCORES: dict[str, Callable[[str, str], float]] = {
    "exact_match": metrics.exact_match,
    "rouge_1": lambda prediction, reference: metrics.rouge_n(prediction, reference, 1),
    "rouge_2": lambda prediction, reference: metrics.rouge_n(prediction, reference, 2),
    "rouge_l": metrics.rouge_l,
}


def row_scores(outcome: Outcome, questions: Sequence[Question]) -> list[dict[str, float]]:
    """The scores of each answer, in the order of the rows."""
    pairs = zip(outcome.generations, questions, strict=True)
    return [
        {name: score(answer.text, asked.reference) for name, score in ROW_SCORES.items()}
        for answer, asked in pairs
    ]


def measure(
    outcome: Outcome,
    scores: Sequence[dict[str, float]],
    baseline: Outcome,
    baseline_scores: Sequence[dict[str, float]],
    questions: Sequence[Question],
) -> dict[str, Any]:
    """One model's measures as plain data; those with an interval carry their verdict as well."""
    predictions = [answer.text for answer in outcome.generations]
    references = [asked.reference for asked in questions]
    quality = {
        name: _judged([row[name] for row in scores], [row[name] for row in baseline_scores])
        for name in ROW_SCORES
    }
    quality["bits_per_byte"] = _judged_bits(outcome.losses, baseline.losses, questions)
    return {
        **asdict(outcome.candidate),
        "kind": outcome.candidate.kind,
        **quality,
        "perplexity": metrics.perplexity(outcome.losses),
        "bleu": asdict(metrics.bleu(predictions, references)),
        "chrf": asdict(metrics.chrf(predictions, references)),
        "health": asdict(
            metrics.health(predictions, [answer.stopped for answer in outcome.generations])
        ),
        "answer_tokens": sum(answer.tokens for answer in outcome.generations),
        "reference_tokens": sum(loss.tokens for loss in outcome.losses),
        "shortened_prompts": outcome.shortened,
        "cost": asdict(outcome.cost),
    }


def _judged(
    values: Sequence[float],
    baseline: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    low, high = metrics.interval(values, weights)
    verdict = metrics.compare_pairs(values, baseline, weights, higher_is_better=higher_is_better)
    return {"score": metrics.mean(values, weights), "low": low, "high": high, "verdict": verdict}


def _judged_bits(
    losses: Sequence[AnswerLoss], baseline: Sequence[AnswerLoss], questions: Sequence[Question]
) -> dict[str, Any]:
    """Bits per UTF-8 byte of the answers: unlike perplexity, comparable between tokenizers."""
    sizes = [sum(len(answer.encode()) for answer in asked.answers) for asked in questions]
    pairs = zip(sizes, losses, baseline, strict=True)
    counted = [row for row, (size, a, b) in enumerate(pairs) if size and a.tokens and b.tokens]
    if not counted:
        return {"score": 0.0, "low": 0.0, "high": 0.0, "verdict": "no clear change"}
    weights = [sizes[row] for row in counted]
    bits = [
        [model[row].nats / log(2) / sizes[row] for row in counted] for model in (losses, baseline)
    ]
    return _judged(*bits, weights, higher_is_better=False)
