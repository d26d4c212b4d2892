"""From answers to figures: scores of each row, measures of each model, verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import log
from typing import Any

from slimtune.evaluation import bootstrap, measures
from slimtune.evaluation.bootstrap import Estimate
from slimtune.inference.answers import Outcome, Question

ROW_SCORES: dict[str, Callable[[str, Question], float]] = {
    "exact_match": lambda text, asked: max(
        measures.exact_match(text, one, asked.extract) for one in asked.references
    ),
    "rouge_1": lambda text, asked: max(measures.rouge_n(text, one, 1) for one in asked.references),
    "rouge_2": lambda text, asked: max(measures.rouge_n(text, one, 2) for one in asked.references),
    "rouge_l": lambda text, asked: max(measures.rouge_l(text, one) for one in asked.references),
}
MEASURES = (*ROW_SCORES, *measures.CORPUS_METRICS) + (
    "token_accuracy",
    "perplexity",
    "bits_per_byte",
)
LOWER_IS_BETTER = ("perplexity", "bits_per_byte")
_OF_ONE_TOKENIZER = ("token_accuracy", "perplexity")


def row_scores(outcome: Outcome, questions: Sequence[Question]) -> list[dict[str, float]]:
    """The scores of each answer, by row; of several references the best counts."""
    pairs = zip(outcome.generations, questions, strict=True)
    return [
        {name: score(answer.text, asked) for name, score in ROW_SCORES.items()}
        for answer, asked in pairs
    ]


def measure(
    outcomes: Sequence[Outcome],
    scores: Sequence[Sequence[dict[str, float]]],
    questions: Sequence[Question],
) -> list[dict[str, Any]]:
    """Each model's measures as plain data: score, 95 % interval, and the verdict against the first.

    None for a measure that does not exist: no reference answer fits max_length, or, for perplexity
    and token accuracy, the model has another tokenizer than the first.
    """
    # Losses are over the rows whose answer fits for every model.
    scored = [r for r in range(len(questions)) if all(one.losses[r].tokens for one in outcomes)]
    found = [
        _estimates(outcome, own, questions, scored)
        for outcome, own in zip(outcomes, scores, strict=True)
    ]
    for outcome, estimates in zip(outcomes, found, strict=True):
        if outcome.asked.digest != outcomes[0].asked.digest:
            for name in _OF_ONE_TOKENIZER:
                estimates.pop(name, None)
    return [
        _plain(outcome, estimates, found[0], questions)
        for outcome, estimates in zip(outcomes, found, strict=True)
    ]


def signatures(questions: Sequence[Question]) -> dict[str, str]:
    """How sacreBLEU computes each of its measures on these references, in its own short form."""
    references = [asked.references for asked in questions]
    found = {}
    for name, make in measures.CORPUS_METRICS.items():
        metric = make()
        bootstrap.corpus(metric, [one[0] for one in references], references, resamples=0)
        found[name] = str(metric.get_signature())
    return found


def _estimates(
    outcome: Outcome,
    scores: Sequence[dict[str, float]],
    questions: Sequence[Question],
    scored: Sequence[int],
) -> dict[str, Estimate]:
    predictions = [answer.text for answer in outcome.generations]
    references = [asked.references for asked in questions]
    found = {name: bootstrap.mean([row[name] for row in scores]) for name in ROW_SCORES}
    for name, metric in measures.CORPUS_METRICS.items():
        found[name] = bootstrap.corpus(metric(), predictions, references)
    return found | (_of_losses(outcome, questions, scored) if scored else {})


def _of_losses(
    outcome: Outcome, questions: Sequence[Question], scored: Sequence[int]
) -> dict[str, Estimate]:
    """Token accuracy in percent, perplexity, and bits per UTF-8 byte of the answers.

    Every token (or byte) counts once, so a long answer weighs more than a short one.
    """
    losses = [outcome.losses[row] for row in scored]
    tokens = [loss.tokens for loss in losses]
    sizes = [sum(len(text.encode()) for text in questions[row].answers) for row in scored]
    bits = [loss.nats / log(2) / size for loss, size in zip(losses, sizes, strict=True)]
    return {
        "token_accuracy": bootstrap.mean([100 * one.hits / one.tokens for one in losses], tokens),
        "perplexity": bootstrap.mean([one.nats / one.tokens for one in losses], tokens).exp(),
        "bits_per_byte": bootstrap.mean(bits, sizes),
    }


def _plain(
    outcome: Outcome,
    estimates: dict[str, Estimate],
    first: dict[str, Estimate],
    questions: Sequence[Question],
) -> dict[str, Any]:
    return {
        **asdict(outcome.candidate),
        "kind": outcome.candidate.kind,
        **dict.fromkeys(MEASURES),
        **{name: _judged(name, one, first[name]) for name, one in estimates.items()},
        "health": asdict(
            measures.health(
                [answer.text for answer in outcome.generations],
                [answer.stopped for answer in outcome.generations],
                [asked.reference for asked in questions],
            )
        ),
        "answer_tokens": sum(answer.tokens for answer in outcome.generations),
        "reference_tokens": sum(loss.tokens for loss in outcome.losses),
        "shortened_prompts": len(outcome.asked.shortened),
        "unscored_answers": sum(not loss.tokens for loss in outcome.losses),
        "cost": asdict(outcome.cost),
    }


def _judged(name: str, estimate: Estimate, first: Estimate) -> dict[str, Any]:
    low, high = estimate.interval
    verdict = bootstrap.verdict(estimate, first, higher_is_better=name not in LOWER_IS_BETTER)
    return {"score": estimate.score, "low": low, "high": high, "verdict": verdict}
