"""The places of the report that come from metrics.json: verdict, tables, warnings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slimtune.console import size
from slimtune.report import standing
from slimtune.report.markdown import markdown_table, plain
from slimtune.report.measure_table import MEASURES, Measure, names_of, value_of
from slimtune.report.standing import Model, Step
from slimtune.report.words import Words, sentence

SIGNS = {"better": "▲", "worse": "▼", "no clear change": "≈"}
_DIVERGENCE = "kl_divergence"
_SPEED = "generated_tokens_per_second"
# A table's cell breaks at a space and behind a dash: these two do not.
_SPACE, _DASH = "\u00a0", "–\u2060"


class Line(NamedTuple):
    """A line of the verdict: what a glance must catch, its sentence, and better, worse or same."""

    figure: str
    sentence: str
    kind: str


def verdict_lines(metrics: Mapping[str, Any], words: Words) -> list[Line]:
    """Three lines: what was gained, what it weighs, whether to believe it."""
    return [_gained(metrics, words), _weighs(metrics, words), _trust(metrics, words)]


def _gained(metrics: Mapping[str, Any], words: Words) -> Line:
    models = metrics["models"]
    first, best = models[0], standing.best(models)
    name = standing.leading(models)
    measure, judged = MEASURES[name], best[name]
    exact, alone = name == "exact_match", best is first
    if alone:
        told = words.alone if exact else words.alone_overlap
    else:
        told = words.verdict if exact else words.verdict_overlap
    figures = {
        "label": plain(best["label"]),
        "score": judged["score"],
        "interval": interval(measure, judged),
        "verdict": words.verdicts[judged["verdict"]],
        "first": plain(first["label"]),
        "first_score": first[name]["score"],
        "rows": metrics["settings"]["rows"],
    }
    kind = "same" if alone else judged["verdict"]
    shown = f"{measure.written(judged['score'])} %"
    before = "" if alone else f"{measure.written(first[name]['score'])} → "
    return Line(before + shown, told.format(**figures), kind)


def _weighs(metrics: Mapping[str, Any], words: Words) -> Line:
    models = metrics["models"]
    first, smallest = models[0], standing.smallest(models)
    if smallest is None or not value_of(first, "bytes_on_disk"):
        return Line("–", words.no_sizes, "same")
    name = standing.leading(models)
    mine, theirs = _bytes(smallest), _bytes(first)
    told = words.smallest if smallest is not first else words.first_is_smallest
    before = f"{size(theirs)} → " if smallest is not first else ""
    figures = {
        "label": plain(smallest["label"]),
        "size": size(mine),
        "share": 100 * mine / theirs,
        "first": plain(first["label"]),
        "first_size": size(theirs),
        "measure": MEASURES[name].label(words.language).title,
        "score": smallest[name]["score"],
    }
    return Line(before + size(mine), told.format(**figures), "same")


def _trust(metrics: Mapping[str, Any], words: Words) -> Line:
    """Warnings of the first model alone doubt nobody's success: most bases talk without end."""
    first, cautions = metrics["models"][0]["label"], metrics["cautions"]
    if not cautions:
        return Line("✓", words.trusted, "better")
    of_others = [one for one in cautions if one.get("label") != first]
    told = words.doubted if of_others else words.first_doubted
    sentence = told.format(count=len(cautions), first=plain(first))
    return Line(f"⚠ {len(cautions)}", sentence, "worse" if of_others else "same")


def interval(measure: Measure, judged: Mapping[str, float]) -> str:
    """The 95 % interval with the digits of its measure; no line ends inside it."""
    return _DASH.join(measure.written(judged[end]) for end in ("low", "high"))


def size_table(models: Sequence[Model], words: Words) -> str:
    """The picture of size and quality as a table, the best for their size marked."""
    name = standing.leading(models)
    measure, best = MEASURES[name], standing.front(models)
    rows = []
    for one in models:
        marked = words.yes if one in best else ""
        shown = [_figure(one, "bytes_on_disk"), _judged(measure, one[name]), _figure(one, _SPEED)]
        rows.append([plain(one["label"]), *shown, marked])
    titles = [MEASURES[one].label(words.language).title for one in ("bytes_on_disk", name, _SPEED)]
    return markdown_table([words.model, *titles, words.best_for_size], rows)


def step_table(models: Sequence[Model], steps: Sequence[Step], words: Words) -> str:
    """A row for each step: from which model to which, what it brought, what it cost."""
    name = standing.leading(models)
    rows = []
    for step in steps:
        labels = [plain(one["label"]) for one in (step.model, step.source)]
        told = (words.step if step.made else words.beside).format(label=labels[0], source=labels[1])
        gain = _unbroken(f"{step_gain(step, name, words)} {SIGNS.get(step.verdict or '', '')}")
        rows.append([told, gain, plain(step_cost(step, words))])
    return markdown_table(words.step_columns, rows) if rows else words.no_steps


def step_gain(step: Step, name: str, words: Words) -> str:
    """What a step brought in the leading measure, in points."""
    return words.points.format(points=step.points(name))


def step_cost(step: Step, words: Words) -> str:
    """Size and speed beside the source, the divergence from the original, and what making it took,
    as far as they are known; bare text.
    """
    share, speed = step.ratio("bytes_on_disk"), step.ratio(_SPEED)
    parts = [words.step_size.format(share=100 * share)] if share else []
    parts += [words.step_speed.format(ratio=speed)] if speed else []
    divergence = value_of(step.model, _DIVERGENCE)
    if divergence is not None and not step.learned:
        shown = MEASURES[_DIVERGENCE].written(divergence)
        parts.append(words.divergence.format(original=step.model["original"], divergence=shown))
    parts += [took(step.run, words)] if step.run else []
    return words.between.join(parts)


def took(run: Mapping[str, Any], words: Words) -> str:
    """Time and memory of a stage."""
    memory = size(run["peak_memory_bytes"])
    minutes, seconds = divmod(round(run["seconds"]), 60)
    time = words.minutes if minutes else words.seconds
    spent = time.format(minutes=minutes, seconds=seconds)
    return words.step_took.format(time=spent, memory=memory)


def comparison(metrics: Mapping[str, Any], words: Words) -> list[str]:
    """Blocks of Markdown: on what was measured, the table of all measures, its legend."""
    settings = metrics["settings"]
    drawn = settings["decoding"] != "greedy"
    parts = [(words.rows_drawn if drawn else words.rows).format(**settings)]
    parts.append(_leakage(settings, words))
    parts += [words.extracted.format(**settings)] if settings["extract"] != "whole" else []
    measured = names_of("quality") + names_of("health")
    parts += [side_by_side(metrics["models"], measured, words), words.legend]
    how = settings["signatures"]  # none where sacreBLEU was not installed
    return [*parts, words.signatures.format(**how)] if how else parts


def side_by_side(models: Sequence[Model], names: Sequence[str], words: Words) -> str:
    """A row a measure, a column a model."""
    headers = [words.compared, *(plain(model["label"]) for model in models)]
    rows = []
    for name in names:
        cells = [_cell(model, name, models[0]) for model in models]
        rows.append([MEASURES[name].title(words.language), *cells])
    return markdown_table(headers, rows)


def _cell(model: Model, name: str, first: Model) -> str:
    measure, value = MEASURES[name], value_of(model, name)
    if value is None or measure.group != "quality":
        return _figure(model, name)
    shown = _judged(measure, model[name])
    sign = SIGNS.get(model[name]["verdict"])  # None where there is nothing to compare with
    return shown if model is first or sign is None else _unbroken(f"{shown} {sign}")


def _figure(model: Model, name: str) -> str:
    value = value_of(model, name)
    return "–" if value is None else _unbroken(MEASURES[name].written(value))


def _judged(measure: Measure, judged: Mapping[str, float]) -> str:
    return _unbroken(f"{measure.written(judged['score'])} ({interval(measure, judged)})")


def _unbroken(text: str) -> str:
    return text.strip().replace(" ", _SPACE)


def _leakage(settings: Mapping[str, Any], words: Words) -> str:
    if settings["leaked_rows"] is None:
        return words.leakage_unknown
    share = 100 * settings["leaked_rows"] / settings["rows"]
    return words.leakage.format(
        leaked=settings["leaked_rows"],
        rows=settings["rows"],
        share=share,
        training_rows=settings["training_rows"],
    )


def warnings(metrics: Mapping[str, Any], words: Words) -> str:
    """Every caution as a line, or that there is none."""
    told = [plain(sentence(caution, words.language)) for caution in metrics["cautions"]]
    return "\n".join(f"- {one}" for one in told) or words.no_warnings


def explanations(words: Words) -> str:
    """Every measure with its direction and what it says, one line each."""
    rows = [
        (measure.title(words.language), measure.label(words.language).meaning)
        for measure in MEASURES.values()
    ]
    return "\n".join(f"| {a} | {b} |" for a, b in [words.explained, ("---", "---"), *rows])


def _bytes(model: Model) -> float:
    return value_of(model, "bytes_on_disk") or 0
