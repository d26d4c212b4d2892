"""Questions with their answers side by side: drawn at random, then the worst.

Random rows say what the model is like, the worst what to fear; either alone misleads.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from slimtune.report.markdown import CONTROL, plain
from slimtune.report.standing import best
from slimtune.report.words import Words

SHOWN = 3  # of each kind; the others are folded
_LONGEST = 1500  # characters of a question or answer on the page

Sample = Mapping[str, Any]


def rows_markdown(metrics: Mapping[str, Any], words: Words) -> str:
    """Both kinds under headings of their own, each row's question as heading."""
    parts = []
    for title, samples in _groups(metrics, words):
        parts.append(f"### {plain(title)}")
        parts += [_as_markdown(one, metrics, words) for one in samples[:SHOWN]]
        if samples[SHOWN:]:
            more = words.more_rows.format(count=len(samples[SHOWN:]))
            parts.append(f"<details><summary>{escape(more)}</summary>")
            parts += [_as_markdown(one, metrics, words) for one in samples[SHOWN:]]
            parts.append("</details>")
    return "\n\n".join(parts)


def rows_html(metrics: Mapping[str, Any], words: Words) -> str:
    """The same for the page: the first model's answer beside the best one's, others folded."""
    parts = []
    for title, samples in _groups(metrics, words):
        parts.append(f"<h3>{escape(title)}</h3>")
        parts += [_as_html(one, metrics, words) for one in samples[:SHOWN]]
        if samples[SHOWN:]:
            more = words.more_rows.format(count=len(samples[SHOWN:]))
            folded = "".join(_as_html(one, metrics, words) for one in samples[SHOWN:])
            parts.append(f"<details><summary>{escape(more)}</summary>{folded}</details>")
    return "".join(parts)


def _groups(metrics: Mapping[str, Any], words: Words) -> list[tuple[str, Sequence[Sample]]]:
    label = best(metrics["models"])["label"]
    worst = words.worst_rows.format(label=label)
    return [(words.random_rows, metrics["random_samples"]), (worst, metrics["samples"])]


def _pair(sample: Sample, metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The labels of the two that stand side by side, and those of the others."""
    models = metrics["models"]
    pair = list(dict.fromkeys([models[0]["label"], best(models)["label"]]))
    return pair, [label for label in sample["answers"] if label not in pair]


def _as_markdown(sample: Sample, metrics: Mapping[str, Any], words: Words) -> str:
    pair, others = _pair(sample, metrics)
    lines = [f"**{plain(sample['prompt'])}**", ""]
    reference = plain(sample["reference"])
    lines.append(f"- {words.told.format(what=words.reference, text=reference)}")
    for label in [*pair, *others]:
        marked = words.marked.format(what=f"**{plain(label)}**", how=_score(sample, label, words))
        answer = plain(sample["answers"][label])
        lines.append(f"- {words.told.format(what=marked, text=answer)}")
    return "\n".join(lines)


def _as_html(sample: Sample, metrics: Mapping[str, Any], words: Words) -> str:
    pair, others = _pair(sample, metrics)
    sides = "".join(_answer(sample, label, words) for label in pair)
    folded = "".join(_answer(sample, label, words) for label in others)
    if folded:
        summary = f"<summary>{escape(words.other_answers)}</summary>"
        folded = f'<details>{summary}<div class="pair">{folded}</div></details>'
    return (
        f'<article class="sample"><h4>{_inert(sample["prompt"])}</h4>'
        f'<p class="reference"><span class="soft">{escape(words.reference)}</span> '
        f"{_inert(sample['reference'])}</p>"
        f'<div class="pair">{sides}</div>{folded}</article>'
    )


def _answer(sample: Sample, label: str, words: Words) -> str:
    right = "better" if _is_right(sample, label) else "worse"
    told = f'<span class="{right}">{escape(_score(sample, label, words))}</span>'
    text = _inert(sample["answers"][label]) or f'<i class="soft">{escape(words.nothing)}</i>'
    return f'<div class="answer"><h5>{_inert(label)} {told}</h5><p>{text}</p></div>'


def _is_right(sample: Sample, label: str) -> bool:
    return sample["right"][label] >= 100


def _score(sample: Sample, label: str, words: Words) -> str:
    """Right, or how much of the reference it has."""
    if _is_right(sample, label):
        return words.right
    return words.overlap.format(score=sample["scores"][label])


def _inert(text: str) -> str:
    """A text as itself on the page: escaped, control characters marked, cut where it is endless."""
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    escaped = escape(CONTROL.sub("\ufffd", shown.strip()))
    return re.sub(r"(?:\r\n?|\n|[\u2028\u2029\x85])+", "<br>", escaped)
