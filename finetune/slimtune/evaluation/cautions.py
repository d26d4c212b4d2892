"""What a reader of the comparison must know before believing it."""

from collections.abc import Iterator, Sequence
from typing import Any

from slimtune.evaluation.answers import Outcome, Question
from slimtune.prompts import render

_SICK = 10.0  # percent of answers


def cautions(
    outcomes: Sequence[Outcome], measures: Sequence[dict[str, Any]], questions: Sequence[Question]
) -> list[str]:
    """One sentence each; an empty list is good news."""
    found: list[str] = []
    for outcome, measured in zip(outcomes, measures, strict=True):
        found += _own_troubles(outcome.candidate.label, measured, len(questions))
        if outcome is not outcomes[0]:
            found += _against_baseline(outcome, outcomes[0], questions)
    return found


def _own_troubles(label: str, measured: dict[str, Any], rows: int) -> Iterator[str]:
    troubles = {
        "empty": "of its answers are empty",
        "without_eos": "of its answers did not end by themselves (no EOS within the token limit)",
        "repeating": "of its answers end in a loop",
    }
    for name, words in troubles.items():
        if measured["health"][name] > _SICK:
            yield f"{label}: {measured['health'][name]:.0f} % {words}"
    if measured["shortened_prompts"]:
        yield f"{label}: {measured['shortened_prompts']} of {rows} prompts were too long and cut"
    if measured["exact_match"]["verdict"] == "worse":
        yield f"{label}: clearly worse than the baseline in exact match"


def _against_baseline(
    outcome: Outcome, baseline: Outcome, questions: Sequence[Question]
) -> Iterator[str]:
    label, first = outcome.candidate.label, baseline.candidate.label
    same = [a.text for a in outcome.generations] == [b.text for b in baseline.generations]
    if outcome.candidate.kind == "adapter" and same:
        yield f"{label}: answers identical to {first}'s on all rows: the adapter has no effect"
    if _first_prompt(outcome, questions) != _first_prompt(baseline, questions):
        yield f"{label}: asked with another prompt template than {first}"
    if [loss.tokens for loss in outcome.losses] != [loss.tokens for loss in baseline.losses]:
        yield f"{label}: another tokenizer than {first}: compare bits per byte, not perplexity"


def _first_prompt(outcome: Outcome, questions: Sequence[Question]) -> str:
    """How the first question reads in a model's template; the tokens' names do not matter."""
    messages = [dict(message) for message in questions[0].messages]
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return render(messages, outcome.template, **tokens, add_generation_prompt=True)
