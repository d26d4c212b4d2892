"""The places of the report that come from metrics.json: verdict, tables, samples, warnings."""

from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.console import size
from slimtune.data.markdown import plain, table
from slimtune.evaluation.cautions import sentence
from slimtune.evaluation.report_words import Words

PLACES = ("verdict", "comparison", "samples", "quantisation", "cost", "warnings")

Model = Mapping[str, Any]


def blocks(metrics: Mapping[str, Any], words: Words, language: str) -> dict[str, str]:
    """Place -> Markdown, for each of PLACES."""
    models = metrics["models"]
    cautions = metrics["cautions"]
    listed = "\n".join(f"- {plain(sentence(caution, language))}" for caution in cautions)
    return {
        "verdict": "  \n".join(_verdict(metrics, words)),
        "comparison": _comparison(metrics, words),
        "samples": "\n\n".join(_sample(sample, words) for sample in metrics["samples"]),
        "quantisation": _quantisation(models, words),
        "cost": table(words.footprint, [_footprint(model) for model in models]),
        "warnings": listed or words.no_warnings,
    }


def _verdict(metrics: Mapping[str, Any], words: Words) -> list[str]:
    """Three lines: what was gained, what it weighs, whether to believe it."""
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
    smallest = min(metrics["models"], key=_bytes)
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
    models = metrics["models"]
    signatures = {name: models[0][name]["signature"] for name in ("bleu", "chrf")}
    return "\n\n".join(
        [
            words.rows.format(**metrics["settings"]),
            table(words.quality, [_quality(model, words) for model in models]),
            table(words.health, [_health(model) for model in models]),
            words.signatures.format(**signatures),
        ]
    )


def _quality(model: Model, words: Words) -> list[str]:
    exact = model["exact_match"]
    others = ("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf")
    return [
        plain(model["label"]),
        f"{exact['score']:.1f}",
        f"{exact['low']:.1f}–{exact['high']:.1f}",
        words.verdicts[exact["verdict"]],
        *(f"{model[name]['score']:.1f}" for name in others),
        f"{model['perplexity']:.3f}",
        f"{model['bits_per_byte']['score']:.3f}",
    ]


def _health(model: Model) -> list[str]:
    return [plain(model["label"]), *(f"{share:.1f}" for share in model["health"].values())]


def _footprint(model: Model) -> list[str]:
    cost = model["cost"]
    return [
        plain(model["label"]),
        f"{cost['parameters']:,}",
        size(cost["bytes_on_disk"]),
        f"{cost['load_seconds']:.1f}",
        f"{cost['prompt_tokens_per_second']:.0f}",
        f"{cost['generated_tokens_per_second']:.0f}",
        size(cost["peak_memory_bytes"]),
    ]


def _quantisation(models: Sequence[Model], words: Words) -> str:
    """What each GGUF lost against the model it was made from, where that was compared too."""
    files = [model for model in models if model["kind"] == "gguf"]
    if not files:
        return words.no_gguf
    sources = {model["reference"]: model for model in models if model["kind"] == "model"}
    return "\n\n".join(_loss(file, sources.get(file["tokenizer"]), words) for file in files)


def _loss(file: Model, source: Model | None, words: Words) -> str:
    label = plain(file["label"])
    if source is None:
        return words.unpaired.format(label=label)
    return words.loss.format(
        label=label,
        source=plain(source["label"]),
        exact=_exact(file) - _exact(source),
        perplexity=file["perplexity"] / source["perplexity"],
        share=100 * _bytes(file) / _bytes(source),
    )


def _sample(sample: Mapping[str, Any], words: Words) -> str:
    lines = [f"- {words.prompt}: {plain(sample['prompt'])}"]
    lines += [f"- {words.reference}: {plain(sample['reference'])}"]
    lines += [f"- **{plain(label)}**: {plain(text)}" for label, text in sample["answers"].items()]
    return "\n".join([f"**{plain(sample['id'])}**", "", *lines])


def _exact(model: Model) -> float:
    return model["exact_match"]["score"]


def _bytes(model: Model) -> int:
    return model["cost"]["bytes_on_disk"]
