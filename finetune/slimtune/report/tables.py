"""The places of the report that come from metrics.json: verdict, tables, samples, warnings."""

from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.console import size
from slimtune.report.markdown import markdown_table, plain
from slimtune.report.measure_table import MEASURES, names_of, value_of
from slimtune.report.words import Words, sentence

PLACES = ("verdict", "leakage", "comparison", "samples", "quantisation", "cost", "warnings")

ModelMetrics = Mapping[str, Any]

_SIGNS = {"better": "▲", "worse": "▼", "no clear change": "≈"}


def comparison_places(metrics: Mapping[str, Any], words: Words) -> dict[str, str]:
    """Place -> Markdown, for each of PLACES."""
    models = metrics["models"]
    cautions = metrics["cautions"]
    listed = "\n".join(f"- {plain(sentence(caution, words.language))}" for caution in cautions)
    return {
        "verdict": "  \n".join(_verdict(metrics, words)),
        "leakage": _leakage(metrics["settings"], words),
        "comparison": _comparison(metrics, words),
        "samples": "\n\n".join(_sample(sample, words) for sample in metrics["samples"]),
        "quantisation": _quantisation(models, words),
        "cost": _side_by_side(models, names_of("cost"), words),
        "warnings": listed or words.no_warnings,
    }


def _verdict(metrics: Mapping[str, Any], words: Words) -> list[str]:
    """Three lines: what was gained, what it weighs (if the first tells), whether to believe it."""
    first, *others = metrics["models"]
    rows, cautions = metrics["settings"]["rows"], metrics["cautions"]
    trust = words.doubted.format(count=len(cautions)) if cautions else words.trusted
    best = max(others, key=_exact, default=first)
    exact = best["exact_match"]
    gained = (words.verdict if others else words.alone).format(
        label=plain(best["label"]),
        score=exact["score"],
        low=exact["low"],
        high=exact["high"],
        verdict=words.verdicts[exact["verdict"]],
        first=plain(first["label"]),
        first_score=_exact(first),
        rows=rows,
    )
    if _bytes(first) is None:
        return [gained, trust]
    sized = [model for model in metrics["models"] if _bytes(model) is not None]
    smallest = min(sized, key=_bytes)
    weighs = words.smallest.format(
        label=plain(smallest["label"]),
        size=size(_bytes(smallest)),
        share=100 * _bytes(smallest) / _bytes(first),
        first=plain(first["label"]),
        first_size=size(_bytes(first)),
        score=_exact(smallest),
    )
    return [gained, weighs, trust]


def _comparison(metrics: Mapping[str, Any], words: Words) -> str:
    settings, models = metrics["settings"], metrics["models"]
    drawn = settings.get("decoding", "greedy") != "greedy"
    parts = [(words.rows_drawn if drawn else words.rows).format(**settings)]
    parts += [words.extracted.format(**settings)] if settings["extract"] != "whole" else []
    measured = names_of("quality") + names_of("health")
    parts += [_side_by_side(models, measured, words), words.legend]
    return "\n\n".join([*parts, words.signatures.format(**settings["signatures"])])


def _side_by_side(models: Sequence[ModelMetrics], names: Sequence[str], words: Words) -> str:
    """A row a measure, a column a model."""
    headers = [words.compared, *(plain(model["label"]) for model in models)]
    rows = []
    for name in names:
        cells = [_cell(model, name, models[0]) for model in models]
        rows.append([MEASURES[name].title(words.language), *cells])
    return markdown_table(headers, rows)


def _cell(model: ModelMetrics, name: str, first: ModelMetrics) -> str:
    measure, value = MEASURES[name], value_of(model, name)
    if value is None:
        return "–"
    if measure.group != "quality":
        return measure.written(value)
    judged = model[name]
    interval = f"{measure.written(judged['low'])}–{measure.written(judged['high'])}"
    shown = f"{measure.written(value)} ({interval})"
    sign = _SIGNS.get(judged["verdict"])  # None where there is nothing to compare with
    return shown if model is first or sign is None else f"{shown} {sign}"


def _quantisation(models: Sequence[ModelMetrics], words: Words) -> str:
    """What each GGUF lost against the model it was made from, where that was compared too.

    A base with an adapter, both files, is held against the folders of the two.
    """
    files = [model for model in models if model["kind"] == "gguf"]
    if not files:
        return words.no_gguf
    folders = [model for model in models if model["kind"] != "gguf"]
    sources = {(model["reference"], model["adapter"]): model for model in folders}
    made_from = [(file["tokenizer"], file["trained"]) for file in files]
    pairs = zip(files, map(sources.get, made_from), strict=True)
    return "\n\n".join(_loss(file, source, words) for file, source in pairs)


def _loss(file: ModelMetrics, source: ModelMetrics | None, words: Words) -> str:
    label = plain(file["label"])
    if source is None or not (file["perplexity"] and source["perplexity"]):
        return words.unpaired.format(label=label)
    return words.loss.format(
        label=label,
        source=plain(source["label"]),
        exact=_exact(file) - _exact(source),
        perplexity=file["perplexity"]["score"] / source["perplexity"]["score"],
        share=100 * _bytes(file) / _bytes(source),
    )


def _sample(sample: Mapping[str, Any], words: Words) -> str:
    lines = [f"- {words.prompt}: {plain(sample['prompt'])}"]
    lines += [f"- {words.reference}: {plain(sample['reference'])}"]
    lines += [
        f"- **{plain(label)}** ({sample['scores'][label]:.0f}): {plain(text)}"
        for label, text in sample["answers"].items()
    ]
    return "\n".join([f"**{plain(sample['id'])}**", "", *lines])


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


def explanations(words: Words) -> str:
    """Every measure with its direction and what it says, one line each."""
    rows = [
        (measure.title(words.language), measure.label(words.language).meaning)
        for measure in MEASURES.values()
    ]
    return "\n".join(f"| {a} | {b} |" for a, b in [words.explained, ("---", "---"), *rows])


def _exact(model: ModelMetrics) -> float:
    return model["exact_match"]["score"]


def _bytes(model: ModelMetrics) -> int | None:
    return model["cost"]["bytes_on_disk"]
