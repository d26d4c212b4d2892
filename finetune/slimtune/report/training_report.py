"""training_report.md of a whole project, filled from the stages' records and metrics.json.

Nothing is left blank: a place whose stage was not run says which command runs it.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from slimtune.console import size
from slimtune.report import page
from slimtune.report import tables as compared
from slimtune.report.markdown import code, markdown_table, plain
from slimtune.report.words import LANGUAGES, Words

_FOLDER = Path(__file__).resolve().parents[2]
_TEMPLATES = {"en": "training_report.md", "zh": "training_report.zh-CN.md"}
_EVALUATE = "python finetune/evaluate_model.py"

# Place in the template: (stage, the command that runs it), in pipeline order.
_STAGES = {
    "sample": ("create_sample_data", "python finetune/create_sample_data.py"),
    "data": ("prepare_data", "python finetune/prepare_data.py"),
    "training": ("train_lora", "python finetune/train_lora.py"),
    "merge": ("merge", f"{_EVALUATE} --merge"),
    "pruning": ("model_pruning", "python finetune/model_pruning.py"),
    "distillation": ("knowledge_distillation", "python finetune/knowledge_distillation.py"),
    "pruned_distilled": ("train_pruned_distilled", "python finetune/train_pruned_distilled.py"),
    "gguf": ("convert_to_gguf", "python finetune/convert_to_gguf.py"),
    "evaluation": ("evaluate_model", _EVALUATE),
}

# The settings that explain a stage's figures; the others are in its run.json.
_SETTINGS = {
    "prepare_data": ["data.format_type", "data.validation_ratio", "data.test_ratio", "data.seed"],
    "train_lora": ["lora.rank", "lora.alpha", "lora.target_modules", "training.epochs"]
    + ["training.batch_size", "training.learning_rate", "training.seed"],
    "model_pruning": ["pruning.ffn_ratio", "pruning.criterion"],
    "knowledge_distillation": ["distillation.top_k", "distillation.temperature"]
    + ["distillation.alpha", "distillation.epochs", "distillation.learning_rate"],
    "train_pruned_distilled": ["pruning.ffn_ratio", "distillation.alpha", "lora.rank"],
    "convert_to_gguf": ["gguf.quantization"],
}

_CURVE_ROWS = 12


def render_report(
    lineage: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Any] | None,
    *,
    language: str = "en",
    curve: Sequence[Mapping[str, float]] = (),
) -> str:
    """The whole report as Markdown; the arguments are those of `report_places`."""
    return report_template(language).substitute(
        report_places(lineage, metrics, language=language, curve=curve)
    )


def report_template(language: str) -> Template:
    """The report without its blocks: headings, and a `${place}` for each."""
    return Template((_FOLDER / _TEMPLATES[language]).read_text(encoding="utf-8"))


def report_places(
    lineage: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Any] | None,
    *,
    language: str = "en",
    curve: Sequence[Mapping[str, float]] = (),
) -> dict[str, str]:
    """Place of the template -> Markdown.

    `lineage` maps stage names to their run.json, `metrics` is the content of metrics.json (None
    before an evaluation), `curve` the lines of the adapter's metrics.jsonl.
    """
    words = LANGUAGES[language]
    places = {place: _stage(lineage, place, words) for place in _STAGES}
    if curve:
        places["training"] += "\n\n" + _curve(curve, words)
    unevaluated = words.not_evaluated.format(command=_EVALUATE)
    found = compared.comparison_places(metrics, words) if metrics else {}
    for place in compared.PLACES:
        places[place] = found.get(place, unevaluated)
    places["data"] += "\n\n" + places["leakage"]
    places["quantisation"] += "\n\n" + places["gguf"]
    places["cost"] += "\n\n" + _stage_costs(lineage, words)
    places["reproduction"] = _reproduction(lineage, words)
    places["measures"] = compared.explanations(words)
    return places


def _stage(lineage: Mapping[str, Mapping[str, Any]], place: str, words: Words) -> str:
    """What a stage was told and what it measured; or how to run it."""
    name, command = _STAGES[place]
    if name not in lineage:
        return words.not_run.format(command=command)
    run = lineage[name]
    settings = [[plain(key), value] for key, value in _chosen(run.get("settings", {}), name)]
    figures = _flat(run.get("metrics", {}))
    measured = [[plain(words.stage_measures.get(key, key)), value] for key, value in figures]
    parts = [words.took.replace("`{command}`", code(_command(run)))]
    parts += [markdown_table(words.setting, settings)] if settings else []
    parts += [markdown_table(words.measure, measured)] if measured else []
    return "\n\n".join(parts)


def _chosen(settings: Mapping[str, Any], stage: str) -> Iterator[tuple[str, str]]:
    for path in _SETTINGS.get(stage, []):
        section, field = path.split(".")
        if field in settings.get(section, {}):
            yield path, _shown(settings[section][field])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Figures and words under names of at most two parts; what lies deeper, and lists of figures,
    are for run.json."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{key}.")
        elif not isinstance(value, Mapping) and not _numbers(value):
            yield f"{prefix}{key}".replace("_", " "), _shown(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and not all(isinstance(one, str) for one in value)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return plain(", ".join(map(str, value)))
    return plain(str(value))


def _curve(curve: Sequence[Mapping[str, float]], words: Words) -> str:
    """At most a dozen steps: all validations as far as they fit, training losses between them."""
    losses: dict[int, list[str]] = {}
    for entry in curve:
        for column, key in enumerate(("loss", "eval_loss")):
            if key in entry:
                losses.setdefault(int(entry["step"]), ["", ""])[column] = f"{entry[key]:.4f}"
    steps = sorted(losses)
    stride = max(-(-len(steps) // _CURVE_ROWS), 1)
    kept = [step for place, step in enumerate(steps) if place % stride == 0 or losses[step][1]]
    return markdown_table(words.curve, [[str(step), *losses[step]] for step in kept])


def _stage_costs(lineage: Mapping[str, Mapping[str, Any]], words: Words) -> str:
    runs = _in_order(lineage)
    rows = [
        [code(name), f"{run['seconds']:.1f}", size(run["peak_memory_bytes"])] for name, run in runs
    ]
    return markdown_table(words.stages, rows) if rows else words.no_commands


def _reproduction(lineage: Mapping[str, Mapping[str, Any]], words: Words) -> str:
    runs = _in_order(lineage)
    if not runs:
        return words.no_commands
    commands = "\n".join(_command(run) for _, run in runs).replace("```", "")
    last = runs[-1][1]
    machine = words.machine.format(
        machine=plain(last["machine"]),
        versions=plain(", ".join(f"{name} {v}" for name, v in last["versions"].items())),
        commit=plain(last["git_commit"] or "–"),
    )
    return f"```bash\n{commands}\n```\n\n{machine}"


def _in_order(
    lineage: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Any]]]:
    """The stages that were run, in pipeline order."""
    return [(name, lineage[name]) for name, _ in _STAGES.values() if name in lineage]


def _command(run: Mapping[str, Any]) -> str:
    script, *arguments = run["command"]
    return f"python finetune/{shlex.join([script, *arguments])}".replace("\n", " ")


def reports(
    metrics: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, Any]],
    adapter: Path | None,
    language: str,
) -> tuple[str, str]:
    """The filled report as Markdown and as HTML; the adapter's metrics.jsonl is the curve.

    `metrics` is the content of metrics.json, `runs` maps stage names to their run.json.
    """
    file = adapter / "metrics.jsonl" if adapter else None
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []
    curve = [json.loads(line) for line in lines]
    told = runs, metrics
    return (
        render_report(*told, language=language, curve=curve),
        page.render_page(*told, language=language, curve=curve),
    )
