"""What each model has forgotten, for the terminal's last lines and for the report.

`told` is the "forgotten" of metrics.json, see evaluation/forgetting.py; None where nothing was
asked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.report.markdown import markdown_table, plain
from slimtune.report.words import LANGUAGES, Words

Told = Mapping[str, Any]
_SHOWN = 6  # of the questions that were lost


def closing_lines(told: Told | None, language: str = "en") -> dict[str, str]:
    """Two short lines for each model after the first, by what stands before the colon."""
    if told is None:
        return {}
    said, verdicts = LANGUAGES[language].forgotten, LANGUAGES[language].verdicts
    first, *others = told["models"]
    lines = {}
    for one in others:
        if one["points"] is not None:
            name = said["general"].format(label=one["label"])
            lines[name] = said["line"].format(**_figures(one, said, verdicts))
        if one["text"]:
            name = said["text"].format(label=one["label"])
            growth, ends = one["text"]["growth"], ("growth_low", "growth_high")
            low, high = (one["text"][end] for end in ends)
            lines[name] = said["text_line"].format(
                before=first["text"]["perplexity"],
                now=one["text"]["perplexity"],
                growth=growth,
                low=low,
                high=high,
                verdict=verdicts[one["text"]["verdict"]],
            )
    return lines


def _figures(one: Told, said: Mapping[str, Any], verdicts: Mapping[str, str]) -> dict[str, Any]:
    counts = {name: one[name] for name in ("lost", "items", "gained", "points")}
    return counts | {
        "share": 100 * one["lost"] / one["items"],
        "low": one["lost_low"],
        "high": one["lost_high"],
        "points_low": one["low"],
        "points_high": one["high"],
        "verdict": verdicts[one["verdict"]],
        "most": _most(one, said),
    }


def _most(one: Told, said: Mapping[str, Any]) -> str:
    """The family that lost most, where one lost more than any other; else nothing."""
    lost = sorted(((group["lost"], name) for name, group in one["families"].items()), reverse=True)
    if not lost or not lost[0][0] or (len(lost) > 1 and lost[0][0] == lost[1][0]):
        return ""
    return said["most"].format(family=said["families"][lost[0][1]])


def section(told: Told | None, words: Words) -> list[str]:
    """Blocks of Markdown: what was asked, a sentence a model, the table, what was lost."""
    said = words.forgotten
    if told is None:
        return [said["unmeasured"]]
    first, *others = told["models"]
    name = {"first": plain(first["label"])}
    asked = said["asked_world" if told["set"] == "world" else "asked"]
    parts = [
        asked.format(items=told["items"], **name) if told["items"] else said["none"].format(**name)
    ]
    if told["left_out"] and told["items"]:
        languages = words.between.join(said["languages"][one] for one in told["left_out"])
        parts.append(said["left_out"].format(languages=languages, **name))
    for one in others:
        if one["points"] is not None:
            figures = _figures(one, said, words.verdicts) | {"label": plain(one["label"])}
            parts.append(said["of_all"].format(**figures))
    parts += [_table(told, words), said["legend"]]
    return [*parts, *_lost(told, words)]


def _table(told: Told, words: Words) -> str:
    """A row for each family, all, and the neutral text; a column for each model."""
    said, models = words.forgotten, told["models"]
    headers = [said["family"], *(plain(one["label"]) for one in models)]
    rows = []
    for family in models[0]["families"]:
        groups = [one["families"][family] for one in models]
        rows.append([said["families"][family], *_counted(groups, said)])
    rows += [[said["all"], *_counted(models, said)]] if told["items"] else []
    texts = [one["text"] for one in models]
    if any(texts):
        rows.append(
            [said["perplexity"], *(f"{one['perplexity']:.2f}" if one else "–" for one in texts)]
        )
    return markdown_table(headers, rows)


def _counted(groups: Sequence[Told], said: Mapping[str, Any]) -> list[str]:
    first, *others = groups
    return [said["cell"].format(**first), *(said["changed"].format(**one) for one in others)]


def _lost(told: Told, words: Words) -> list[str]:
    """Questions that the first model had right and others have not, with all answers."""
    samples = told["samples"][:_SHOWN]
    if not samples:
        return []
    labels = [one["label"] for one in told["models"]]
    headers = [words.forgotten["question"], *map(plain, labels)]
    rows = [
        [
            plain(one["question"]),
            *(plain(one["answers"][label]) or words.nothing for label in labels),
        ]
        for one in samples
    ]
    return [f"### {words.forgotten['lost']}", markdown_table(headers, rows)]
