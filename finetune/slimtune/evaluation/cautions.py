"""What a reader of a comparison must know before believing it."""

from collections.abc import Iterator, Sequence
from typing import Any

from slimtune.evaluation.answers import Outcome, Question
from slimtune.prompts import render

_SICK = 10.0  # percent of answers

Caution = dict[str, Any]  # its kind, and the figures of its sentence

_SENTENCES = {
    "en": {
        "empty": "{label}: {share:.0f} % of its answers are empty",
        "without_eos": "{label}: {share:.0f} % of its answers ran into the token limit (no EOS)",
        "repeating": "{label}: {share:.0f} % of its answers end in a loop",
        "shortened": "{label}: {count} of {rows} prompts were too long and lost their start",
        "worse": "{label}: clearly worse than {first} in exact match",
        "no_effect": "{label}: its answers are {first}'s on all rows: the adapter has no effect",
        "template": "{label}: asked with another prompt template than {first}",
        "tokenizer": "{label}: another tokenizer than {first}: compare bits per byte, "
        "not perplexity",
    },
    "zh": {
        "empty": "{label}：{share:.0f} % 的回答为空",
        "without_eos": "{label}：{share:.0f} % 的回答一直写到上限（没有 EOS）",
        "repeating": "{label}：{share:.0f} % 的回答以循环重复结尾",
        "shortened": "{label}：{rows} 条提示中有 {count} 条过长，开头被截去",
        "worse": "{label}：完全匹配明显差于 {first}",
        "no_effect": "{label}：所有回答都与 {first} 相同：适配器没有作用",
        "template": "{label}：使用的提示模板与 {first} 不同",
        "tokenizer": "{label}：分词器与 {first} 不同：请比较每字节比特，而不是困惑度",
    },
}


def sentence(caution: Caution, language: str = "en") -> str:
    """A caution in words."""
    return _SENTENCES[language][caution["kind"]].format(**caution)


def cautions(
    outcomes: Sequence[Outcome], measures: Sequence[dict[str, Any]], questions: Sequence[Question]
) -> list[Caution]:
    """All that looks suspicious; an empty list is good news."""
    first = outcomes[0].candidate.label
    found: list[Caution] = []
    for outcome, measured in zip(outcomes, measures, strict=True):
        names = {"label": outcome.candidate.label, "first": first}
        found += [names | caution for caution in _own_troubles(measured, len(questions))]
        if outcome is not outcomes[0]:
            kinds = _against_first(outcome, outcomes[0], questions)
            found += [names | {"kind": kind} for kind in kinds]
    return found


def _own_troubles(measured: dict[str, Any], rows: int) -> Iterator[Caution]:
    for kind, share in measured["health"].items():
        if share > _SICK:
            yield {"kind": kind, "share": share}
    if measured["shortened_prompts"]:
        yield {"kind": "shortened", "count": measured["shortened_prompts"], "rows": rows}
    if measured["exact_match"]["verdict"] == "worse":
        yield {"kind": "worse"}


def _against_first(outcome: Outcome, first: Outcome, questions: Sequence[Question]) -> list[str]:
    ours, theirs = ([answer.text for answer in one.generations] for one in (outcome, first))
    counts = [[loss.tokens for loss in one.losses] for one in (outcome, first)]
    found = {
        "no_effect": outcome.candidate.kind == "adapter" and ours == theirs,
        "template": _first_prompt(outcome, questions) != _first_prompt(first, questions),
        "tokenizer": counts[0] != counts[1],
    }
    return [kind for kind, true in found.items() if true]


def _first_prompt(outcome: Outcome, questions: Sequence[Question]) -> str:
    """How the first question reads in a model's template; the tokens' names do not matter."""
    messages = [dict(message) for message in questions[0].messages]
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return render(messages, outcome.template, **tokens, add_generation_prompt=True)
