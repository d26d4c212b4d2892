"""What a reader of a comparison must know before believing it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slimtune.evaluation.fairness import foreign_base
from slimtune.inference.answers import Outcome

_SICK = 10.0  # percent of answers
_LENGTHS = (0.5, 2.0)  # answers half as long as the references, or twice

Caution = dict[str, Any]  # its kind, and the figures of its sentence in report/words.yaml
_FEW = 30


def cautions(
    outcomes: Sequence[Outcome], measures: Sequence[dict[str, Any]], settings: Mapping[str, Any]
) -> list[Caution]:
    """All that looks suspicious; an empty list is good news."""
    first = outcomes[0]
    found: list[Caution] = list(_of_rows(settings))
    for outcome, measured in zip(outcomes, measures, strict=True):
        names = {"label": outcome.candidate.label, "first": first.candidate.label}
        troubles = [*_of_base(outcome), *_of_answers(measured, settings["rows"])]
        if outcome is not first:
            own = outcome.candidate.label in settings["own_templates"]
            troubles = [*_against_first(outcome, first, own), *troubles]
        troubles += _against_source(measured, first.candidate.label)
        found += [names | caution for caution in troubles]
    return found


def _of_rows(settings: Mapping[str, Any]) -> Iterator[Caution]:
    rows, leaked = settings["rows"], settings["leaked_rows"]
    if leaked:
        yield {"kind": "leak", "leaked": leaked, "rows": rows, "share": 100 * leaked / rows}
    if rows < _FEW:
        yield {"kind": "few", "rows": rows}


def _of_base(outcome: Outcome) -> Iterator[Caution]:
    if base := foreign_base(outcome.candidate):
        yield {"kind": "other_base", "base": base}
    if outcome.guessing:
        yield {"kind": "guessing", "loss": outcome.guessing}


def _of_answers(measured: dict[str, Any], rows: int) -> Iterator[Caution]:
    if measured["exact_match"]["verdict"] == "worse":
        yield {"kind": "worse"}
    health = measured["health"]
    for kind in ("empty", "without_eos", "repeating"):
        if health[kind] > _SICK:
            yield {"kind": kind, "share": health[kind]}
    if not _LENGTHS[0] <= health["length_ratio"] <= _LENGTHS[1]:
        yield {"kind": "length", "ratio": health["length_ratio"]}
    for kind, name in (("shortened", "shortened_prompts"), ("unscored", "unscored_answers")):
        if measured[name]:
            yield {"kind": kind, "count": measured[name], "rows": rows}


def _against_source(measured: dict[str, Any], first: str) -> Iterator[Caution]:
    """The model it was made from stands in the first's place."""
    source = measured["made_from"]
    if source != first and measured["exact_match"]["verdict_made_from"] == "worse":
        yield {"kind": "worse", "first": source}


def _against_first(outcome: Outcome, first: Outcome, own_template: bool) -> Iterator[Caution]:
    if outcome.candidate.kind == "server":
        yield {"kind": "served"}
    elif outcome.asked.digest != first.asked.digest and first.losses:
        yield {"kind": "own_template" if own_template else "tokenizer"}
    ours, theirs = ([answer.text for answer in one.generations] for one in (outcome, first))
    if ours != theirs:
        return
    own, base = outcome.candidate, first.candidate
    if own.adapter and not base.adapter and base.reference in (own.reference, own.tokenizer):
        yield {"kind": "no_effect"}
    elif outcome.losses == first.losses and outcome.losses:
        yield {"kind": "identical"}
