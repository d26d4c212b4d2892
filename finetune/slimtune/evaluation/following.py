"""What comes after a model is made or compared, as a command: it names models of one family."""

import os
from collections.abc import Sequence
from pathlib import Path

from slimtune.artifacts import ancestors, run_of
from slimtune.config import Config
from slimtune.inference.questions import Candidate
from slimtune.settings.commands import next_command, unless_set

# What is said of a comparison's rows and files, and of no other use of the same models.
_OF_ROWS = ("output", "max_rows", "test_data", "baseline", "extract", "language", "token_budget")
_OF_ROWS = tuple(f"evaluation.{name}" for name in _OF_ROWS)


def comparison_command(config: Config, source: str, *models: Path | str) -> str:
    """The comparison of `models`, which were made from `source`.

    With the base and adapter of the settings where `source` goes back to them: another family would
    be refused, or be compared for nothing. Else `source` takes the place of the base.
    """
    base, adapter = config.model.base_model, config.evaluation.lora_model
    family = {source, *(one["path"] for run in ancestors(Path(source)) for one in run["inputs"])}
    given = {}
    if base not in family:
        given |= {"model.base_model": source, "evaluation.lora_model": None}
    elif adapter and not os.path.isdir(adapter):
        given |= {"evaluation.lora_model": None}
    others = [str(one) for one in models if str(one) != given.get("model.base_model")]
    return next_command("evaluate_model", config, given | {"evaluation.models": others})


def step_after(config: Config, chosen: Sequence[Candidate]) -> str:
    """The step that is still missing: merging, converting, or a talk with the result."""
    adapters = [one for one in chosen if one.kind == "adapter"]
    merged = [config.evaluation.merged_dir or _beside(one) for one in adapters]
    for one, folder in zip(adapters, merged, strict=True):
        if not folder.is_dir():
            named = {"model.base_model": one.reference, "evaluation.lora_model": one.adapter}
            given = {"evaluation.merge": True, **unless_set(config, named)}
            leave = {*_OF_ROWS, "evaluation.models"} - {"evaluation.output"}  # for its card
            return next_command("evaluate_model", config, given, leave=leave)
    if merged and not any(one.kind == "gguf" for one in chosen):
        return next_command("convert_to_gguf", config, {"gguf.model_path": merged[0]})
    talk = {"evaluation.interactive": True}
    return next_command("evaluate_model", config, talk, leave=_OF_ROWS)


def step_after_combined(config: Config, final: Path, files: Sequence[Path], command: str) -> str:
    """A talk with the files of the size that was asked for, else a conversion of the final model,
    else the combined run's own `command` to go on with."""
    if files:
        talk = {"evaluation.interactive": True, "evaluation.models": [*files]}
        return next_command("evaluate_model", config, talk, leave=_OF_ROWS)
    if run_of(final):
        return next_command("convert_to_gguf", config, {"gguf.model_path": final})
    return f"{command} --resume"


def _beside(adapter: Candidate) -> Path:
    return Path(adapter.adapter or "").with_name("merged_model")
