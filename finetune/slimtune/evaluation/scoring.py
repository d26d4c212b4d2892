"""From answers to figures: scores of each row, measures of each model, verdicts.

A measure of quality is the function of its name in evaluation/measures.py; the table of measures
says which there are and what each is computed from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from slimtune.evaluation import bootstrap, measures
from slimtune.evaluation.bootstrap import Estimate, Verdict
from slimtune.evaluation.origins import Origin
from slimtune.inference.answers import Outcome
from slimtune.inference.questions import Question
from slimtune.packages import is_installed
from slimtune.report.measure_table import MEASURES, names_of, names_over


def row_scores(outcome: Outcome, questions: Sequence[Question]) -> list[dict[str, float]]:
    """The scores of each answer, by row; of several references the best counts."""
    rows = []
    for answer, asked in zip(outcome.generations, questions, strict=True):
        names = names_over("answer")
        rows.append({name: _best_score(name, answer.text, asked) for name in names})
    return rows


def _best_score(name: str, text: str, asked: Question) -> float:
    score = getattr(measures, name)
    return max(score(text, reference, asked.extract) for reference in asked.references)


Estimates = dict[str, Estimate]
_UNKNOWN = Origin()


def measure(
    outcomes: Sequence[Outcome],
    scores: Sequence[Sequence[dict[str, float]]],
    questions: Sequence[Question],
    origins: Mapping[str, Origin] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Each model's measures as plain data: score, 95 % interval, and the verdicts against the first
    model and against the one it was made from, `origins` says which by their labels.

    None for a measure that does not exist: no reference answer fits max_length; for perplexity and
    token accuracy, the model has another tokenizer than the first; for what is measured against an
    original, there is none, or its vocabulary is another. None for a verdict where there is nothing
    to compare with.
    """
    # Losses are over the rows whose answer fits for every model.
    scoring = [one for one in outcomes if one.losses]  # all but servers
    scored = [r for r in range(len(questions)) if all(one.losses[r].tokens for one in scoring)]
    found = [
        _estimates(outcome, own, questions, scored)
        for outcome, own in zip(outcomes, scores, strict=True)
    ]
    for outcome, estimates in zip(outcomes, found, strict=True):
        if scoring and outcome.asked.digest != scoring[0].asked.digest:
            for name, entry in MEASURES.items():
                if entry.one_tokenizer:
                    estimates.pop(name, None)
    known = {one.candidate.label: estimates for one, estimates in zip(outcomes, found, strict=True)}
    return [_plain(outcome, known, origins, questions) for outcome in outcomes]


def signatures(questions: Sequence[Question]) -> dict[str, str]:
    """How sacreBLEU computes each of its measures on these references, in its own short form.

    Nothing where it is not installed: its measures are left out.
    """
    references = [asked.references for asked in questions]
    found = {}
    for name in _over_corpus():
        metric = getattr(measures, name)()
        bootstrap.corpus(metric, [one[0] for one in references], references, resamples=0)
        found[name] = str(metric.get_signature())
    return found


def _over_corpus() -> list[str]:
    return names_over("corpus") if is_installed("sacrebleu") else []


def _estimates(
    outcome: Outcome,
    scores: Sequence[dict[str, float]],
    questions: Sequence[Question],
    scored: Sequence[int],
) -> Estimates:
    predictions = [answer.text for answer in outcome.generations]
    references = [asked.references for asked in questions]
    found = {}
    for name in names_over("answer"):
        found[name] = bootstrap.mean([row[name] for row in scores], percent=True)
    for name in _over_corpus():
        metric = getattr(measures, name)()
        found[name] = bootstrap.corpus(metric, predictions, references)
    if scored and outcome.losses:
        losses = [outcome.losses[row] for row in scored]
        sizes = [sum(len(text.encode()) for text in questions[row].answers) for row in scored]
        for name in names_over("losses"):
            found[name] = getattr(measures, name)(losses, sizes)
    compared = [loss for loss in outcome.losses if loss.compared]
    if compared:
        for name in names_over("divergences"):
            found[name] = getattr(measures, name)(compared)
    return found


def _plain(
    outcome: Outcome,
    known: Mapping[str, Estimates],
    origins: Mapping[str, Origin],
    questions: Sequence[Question],
) -> dict[str, Any]:
    label = outcome.candidate.label
    origin = origins.get(label, _UNKNOWN)
    beside = {"verdict": next(iter(known)), "verdict_made_from": origin.made_from}
    judged = {}
    for name, estimate in known[label].items():
        judged[name] = _interval(estimate)
        for key, other in beside.items():
            same = _one_original(name, label, other, origins)
            judged[name][key] = _verdict(name, estimate, known.get(other, {})) if same else None
    return {
        **asdict(outcome.candidate),
        "kind": outcome.candidate.kind,
        **asdict(origin),
        **dict.fromkeys(names_of("quality")),
        **judged,
        "health": asdict(
            measures.health(
                [answer.text for answer in outcome.generations],
                [answer.stopped for answer in outcome.generations],
                [asked.reference for asked in questions],
            )
        ),
        "answer_tokens": _total([answer.tokens for answer in outcome.generations]),
        "reference_tokens": sum(loss.tokens for loss in outcome.losses),
        "shortened_prompts": len(outcome.asked.shortened),
        "unscored_answers": sum(not loss.tokens for loss in outcome.losses),
        "compared_rows": sum(loss.compared > 0 for loss in outcome.losses),
        "compared_tokens": sum(loss.compared for loss in outcome.losses),
        "cost": asdict(outcome.cost),
    }


def _total(counts: Sequence[int | None]) -> int | None:
    """None where a server left out to count."""
    return None if None in counts else sum(counts)


def _interval(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval
    return {"score": estimate.score, "low": low, "high": high}


def _verdict(name: str, estimate: Estimate, others: Estimates) -> Verdict | None:
    if name not in others:
        return None
    higher = MEASURES[name].arrow == "higher"
    return bootstrap.verdict(estimate, others[name], higher_is_better=higher)


def _one_original(name: str, label: str, other: str | None, origins: Mapping[str, Origin]) -> bool:
    """Whether a measure against an original compares: two originals make two scales."""
    if MEASURES[name].over != "divergences":
        return True
    ours, theirs = (origins.get(one or "", _UNKNOWN).original for one in (label, other))
    return ours == theirs
