"""What a reader of a comparison must know before believing it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slimtune.evaluation.fairness import foreign_base
from slimtune.inference.answers import Outcome

_SICK = 10.0  # percent of answers
_LENGTHS = (0.5, 2.0)  # answers half as long as the references, or twice

Caution = dict[str, Any]  # its kind, and the figures of its sentence

_SENTENCES = {
    "en": {
        "leak": "{leaked} of {rows} test questions ({share:.1f} %) are in the training rows too: "
        "what was learned by heart counts as right",
        "other_base": "{label}: its adapter was trained on {base}, not on the model it sits on",
        "no_effect": "{label}: outputs identical to {first} on all rows: the adapter has no effect "
        "(untrained, or trained for another base?)",
        "identical": "{label}: outputs identical to {first} on all rows, although it is another "
        "model",
        "tokenizer": "{label}: another tokenizer than {first}: bits per byte compare, so "
        "perplexity and token accuracy are left out",
        "worse": "{label}: clearly worse than {first} in exact match",
        "empty": "{label}: {share:.0f} % of its answers are empty",
        "without_eos": "{label}: {share:.0f} % of its answers ran into the token limit (no EOS)",
        "repeating": "{label}: {share:.0f} % of its answers end in a loop",
        "length": "{label}: its answers are {ratio:.1f} times as long as the references",
        "shortened": "{label}: {count} of {rows} prompts were too long and lost their start",
        "unscored": "{label}: {count} of {rows} reference answers exceed max_length and do not "
        "count in the perplexity",
        "few": "only {rows} test rows: small differences cannot show",
    },
    "zh": {
        "leak": "{rows} 条测试问题中有 {leaked} 条（{share:.1f} %）也在训练数据里："
        "背下来的答案也会算对",
        "other_base": "{label}：它的适配器是在 {base} 上训练的，而不是现在的基座模型",
        "no_effect": "{label}：在所有数据上的输出都与 {first} 相同：适配器没有作用"
        "（没有训练，或是为另一个基座训练的？）",
        "identical": "{label}：是另一个模型，但在所有数据上的输出都与 {first} 相同",
        "tokenizer": "{label}：分词器与 {first} 不同：请比较每字节比特；困惑度和词元准确率不列出",
        "worse": "{label}：完全匹配明显差于 {first}",
        "empty": "{label}：{share:.0f} % 的回答为空",
        "without_eos": "{label}：{share:.0f} % 的回答一直写到上限（没有 EOS）",
        "repeating": "{label}：{share:.0f} % 的回答以循环重复结尾",
        "length": "{label}：回答长度是参考答案的 {ratio:.1f} 倍",
        "shortened": "{label}：{rows} 条提示中有 {count} 条过长，开头被截去",
        "unscored": "{label}：{rows} 条参考答案中有 {count} 条超过 max_length，不计入困惑度",
        "few": "只有 {rows} 条测试数据：看不出小的差别",
    },
}
_FEW = 30


def sentence(caution: Caution, language: str = "en") -> str:
    """A caution in words."""
    return _SENTENCES[language][caution["kind"]].format(**caution)


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
            troubles = [*_against_first(outcome, first), *troubles]
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


def _against_first(outcome: Outcome, first: Outcome) -> Iterator[Caution]:
    if outcome.asked.digest != first.asked.digest:
        yield {"kind": "tokenizer"}
    ours, theirs = ([answer.text for answer in one.generations] for one in (outcome, first))
    if ours != theirs:
        return
    if outcome.candidate.kind == "adapter":
        yield {"kind": "no_effect"}
    elif outcome.losses == first.losses:
        yield {"kind": "identical"}
