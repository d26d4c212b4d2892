"""How each stage came about, folded: its command, what it measured and what it was told, in words.

Only figures that say something to a reader have words (`figures` in words.yaml); all others, and
all settings, are in the run.json beside the stage's result.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from slimtune.console import size, to_paste
from slimtune.report.markdown import code, markdown_table, plain
from slimtune.report.tables import took
from slimtune.report.words import Words

Run = Mapping[str, Any]

_EVALUATE = "python finetune/evaluate_model.py"
# Stage -> the command that runs it, in pipeline order.
STAGES = {
    "create_sample_data": "python finetune/create_sample_data.py",
    "prepare_data": "python finetune/prepare_data.py",
    "train_lora": "python finetune/train_lora.py",
    "merge": f"{_EVALUATE} --merge",
    "model_pruning": "python finetune/model_pruning.py",
    "knowledge_distillation": "python finetune/knowledge_distillation.py",
    "train_pruned_distilled": "python finetune/train_pruned_distilled.py",
    "convert_to_gguf": "python finetune/convert_to_gguf.py",
    "evaluate_model": _EVALUATE,
}

# The settings that explain a stage's figures; the others are in its run.json.
SETTINGS = {
    "prepare_data": ["data.format_type", "data.validation_ratio", "data.test_ratio", "data.seed"],
    "train_lora": ["lora.rank", "lora.alpha", "lora.target_modules", "training.epochs"]
    + ["training.batch_size", "training.learning_rate", "training.seed"],
    "model_pruning": ["pruning.ffn_ratio", "pruning.criterion"],
    "knowledge_distillation": ["distillation.top_k", "distillation.temperature"]
    + ["distillation.alpha", "distillation.epochs", "distillation.learning_rate"],
    "train_pruned_distilled": ["pruning.ffn_ratio", "distillation.alpha", "lora.rank"],
    "convert_to_gguf": [
        "gguf.quantization",
        "gguf.target_size",
        "gguf.target_bits",
        "gguf.max_loss",
    ],
}


def stage_sections(lineage: Mapping[str, Run], words: Words) -> str:
    """A folded section for each stage of the lineage; a line for each that is no part of it."""
    parts = [_section(name, run, words) for name, run in in_order(lineage)]
    absent = [name for name in STAGES if name not in lineage]
    if absent:
        parts.append(words.not_part)
        told = (
            words.told.format(what=words.stage_titles[name], text=code(STAGES[name]))
            for name in absent
        )
        parts.append("\n".join(f"- {line}" for line in told))
    return "\n\n".join([*parts, words.the_rest])


def in_order(lineage: Mapping[str, Run]) -> list[tuple[str, Run]]:
    """The stages of the lineage that a user runs, in pipeline order."""
    return [(name, lineage[name]) for name in STAGES if name in lineage]


def command_of(run: Run) -> str:
    """The command line that ran a stage, to paste."""
    script, *arguments = run["command"]
    return to_paste(script.removesuffix(".py"), *arguments).replace("\n", " ")


def _section(name: str, run: Run, words: Words) -> str:
    title = f"{words.stage_titles[name]}{words.between}{took(run, words)}"
    figures = list(_told(run.get("metrics", {}), words))
    settings = list(_chosen(run.get("settings", {}), name, words))
    parts = [f"<details><summary>{escape(title)}</summary>"]
    parts.append(words.took.replace("`{command}`", code(command_of(run))))
    parts += [markdown_table(words.measure, figures)] if figures else []
    parts += [markdown_table(words.setting, settings)] if settings else []
    return "\n\n".join([*parts, "</details>"])


def _told(metrics: Mapping[str, Any], words: Words) -> Iterator[tuple[str, str]]:
    """The figures that have words, in the order of the words."""
    noted = dict(_flat(metrics))
    for key, told in words.figures.items():
        if noted.get(key) not in (None, "", []):
            yield told, _figure(key, noted[key], words)


def _figure(key: str, value: Any, words: Words) -> str:
    """A figure as a reader knows it: shares in percent, bytes as sizes."""
    if key.endswith(("share", "agreement")) and isinstance(value, int | float):
        return f"{value:.1%}"
    return size(value) if key == "bytes" else _shown(value, words)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Figures under names of at most two parts, `section.figure`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{key}.")
        elif not isinstance(value, Mapping):
            yield f"{prefix}{key}", value


def _chosen(settings: Mapping[str, Any], stage: str, words: Words) -> Iterator[tuple[str, str]]:
    for path in SETTINGS.get(stage, []):
        section, field = path.split(".")
        if settings.get(section, {}).get(field) is not None:
            told = f"{plain(words.settings[path])} {code(path)}"
            yield told, _shown(settings[section][field], words)


def _shown(value: Any, words: Words) -> str:
    if isinstance(value, bool) or value is None:
        return {True: words.yes, False: words.no, None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return plain(", ".join(map(str, value)))
    return plain(str(value))
