"""What each model has forgotten since the first: general questions it no longer answers rightly,
and how much more neutral text surprises it.

`lost` are the items that the first model had right and this one has wrong, `gained` the others way
round; `points` is the change of the share that is right, with the interval of the paired bootstrap,
and the verdict is whether that leaves out zero. `lost` alone has Wilson's interval: a model that
answers at random loses as many as it gains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.config import Evaluation
from slimtune.data.general_sets import Item, general_set
from slimtune.errors import QualityError
from slimtune.evaluation import bootstrap, measures
from slimtune.evaluation.bootstrap import Estimate
from slimtune.evaluation.examination import is_right
from slimtune.inference.answers import Examined, Outcome

_SHOWN = 12  # lost items with their answers
Marks = dict[str, bool]  # of each item, by its id


def forgotten(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Plain data of all models that were examined, the first's figures alone; None where it was
    not, or nothing stands beside it.

    Only items that all of them were asked count. Texts of languages that were left out do not,
    unless all were; they compare within one vocabulary.
    """
    first, others = outcomes[0], [one for one in outcomes[1:] if one.examined]
    if not first.examined or not others:
        return None
    examined = [one.examined for one in (first, *others)]
    shared = set.intersection(*({item.id for item in one.items} for one in examined))
    items = [item for item in first.examined.items if item.id in shared]
    languages = list(dict.fromkeys(item.language for item in items))
    asked = dict.fromkeys(item.language for item in first.examined.items)
    marks = [_marks(one, shared) for one in examined]
    losses = [_text(one, examined[0], languages) for one in examined]
    labels = [one.candidate.label for one in (first, *others)]
    models = [
        {"label": label}
        | _against(own, marks[0], items)
        | {"text": loss and _surprise(loss, losses[0])}
        for label, own, loss in zip(labels, marks, losses, strict=True)
    ]
    return {
        "set": examined[0].set,
        "items": len(items),
        "languages": languages,
        "left_out": [one for one in asked if one not in languages],
        "models": models,
        "samples": _samples(items, labels, examined, marks),
    }


def _marks(examined: Examined, shared: set[str]) -> Marks:
    answered = examined.answered
    return {item.id: is_right(item, text) for item, text in answered if item.id in shared}


def _against(own: Marks, first: Marks, items: Sequence[Item]) -> dict[str, Any]:
    """Counts of all items and of each family; points, interval and verdict of all."""
    families = dict.fromkeys(item.family for item in items)
    groups = {name: [item for item in items if item.family == name] for name in families}
    counts = _counts(own, first, items)
    told = counts | {"families": {k: _counts(own, first, some) for k, some in groups.items()}}
    if not items or own is first:
        return told | dict.fromkeys(("points", "low", "high", "verdict"))
    now, before = (_estimate(marks, items) for marks in (own, first))
    points, low, high = bootstrap.difference(now, before)
    least, most = bootstrap.wilson(100 * counts["lost"] / len(items), len(items))
    judged = {"points": points, "low": low, "high": high, "verdict": bootstrap.verdict(now, before)}
    return told | judged | {"lost_low": least, "lost_high": most}


def _counts(own: Marks, first: Marks, items: Sequence[Item]) -> dict[str, int]:
    pairs = [(own[item.id], first[item.id]) for item in items]
    return {
        "items": len(pairs),
        "right": sum(now for now, _ in pairs),
        "lost": sum(before and not now for now, before in pairs),
        "gained": sum(now and not before for now, before in pairs),
    }


def _estimate(marks: Marks, items: Sequence[Item]) -> Estimate:
    return bootstrap.mean([100.0 * marks[item.id] for item in items], percent=True)


def _text(examined: Examined, first: Examined, languages: Sequence[str]) -> Estimate | None:
    """Perplexity on the texts; None of a server and of another vocabulary."""
    if not examined.losses or examined.vocabulary != first.vocabulary:
        return None
    passages = general_set(examined.set).passages
    pairs = zip(passages, examined.losses, strict=True)
    meant = {None, *(languages or {one.language for one in passages})}
    scored = [(one.text, loss) for one, loss in pairs if one.language in meant and loss.tokens]
    if not scored:
        return None
    texts, losses = zip(*scored, strict=True)
    return measures.perplexity(losses, [len(text.encode()) for text in texts])


def _surprise(now: Estimate, first: Estimate) -> dict[str, Any]:
    """Perplexity with its interval; its growth over the first's in percent, with interval and
    verdict."""
    low, high = now.interval
    found = {"perplexity": now.score, "low": low, "high": high}
    if now is first:
        return found | dict.fromkeys(("growth", "growth_low", "growth_high", "verdict"))
    ratio = Estimate(now.score / first.score, now.draws / first.draws)
    low, high = (100 * (end - 1) for end in ratio.interval)
    found |= {"growth": 100 * (ratio.score - 1), "growth_low": low, "growth_high": high}
    return found | {"verdict": bootstrap.verdict(now, first, higher_is_better=False)}


def _samples(
    items: Sequence[Item],
    labels: Sequence[str],
    examined: Sequence[Examined],
    marks: Sequence[Marks],
) -> list[dict[str, Any]]:
    """Items that the first had right and most of the others have wrong, with all answers."""
    texts = [{item.id: text for item, text in one.answered} for one in examined]
    lost = [(sum(not one[i.id] for one in marks[1:]), i) for i in items if marks[0][i.id]]
    worst = sorted((pair for pair in lost if pair[0]), key=lambda pair: -pair[0])[:_SHOWN]
    return [
        {
            "question": item.question,
            "family": item.family,
            "answers": {label: text[item.id] for label, text in zip(labels, texts, strict=True)},
        }
        for _, item in worst
    ]


def require_within(
    settings: Evaluation, models: Sequence[Mapping[str, Any]], told: Mapping[str, Any] | None
) -> None:
    """QualityError, after all is written, where a model after the first is beyond a limit of
    evaluation.fail_if, or where what a limit is about could not be measured."""
    first, *others = models
    known = {one["label"]: one for one in told["models"]} if told else {}
    found: list[str] = []
    for model in others:
        for name, limit in settings.limits.items():
            value = _figure(name, model, known.get(model["label"]))
            beyond = value is None or (value < limit if name == "match_below" else value > limit)
            if beyond:
                shown = "not measured" if value is None else f"{value:.3f}"
                found.append(
                    f"{model['label']}: {name.removesuffix('_below')} {shown} ({name}={limit:g})"
                )
    if found:
        raise QualityError(
            f"evaluation.fail_if: {'; '.join(found)}",
            f"judged against {first['label']}; everything was written before",
            "see the report, train otherwise (--replay keeps more of what the base can), "
            "or set other limits with --fail-if",
        )


def _figure(name: str, model: Mapping[str, Any], told: Mapping[str, Any] | None) -> float | None:
    """What a limit is about, as a share; None where it was not measured."""
    if name == "match_below":
        return model["exact_match"]["score"] / 100
    if told is None:
        return None
    if name == "forgot":
        return None if told["points"] is None else -told["points"] / 100
    return told["text"] and told["text"]["growth"] / 100
