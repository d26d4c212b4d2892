"""The merge as a stage: base + adapter in a folder, with a card that tells the adapter's test."""

from pathlib import Path
from typing import Any

from slimtune.artifacts import run_of, stage_folder
from slimtune.artifacts.records import read_manifest
from slimtune.config import Config
from slimtune.console import decoration
from slimtune.models.adapter_config import read_adapter_config
from slimtune.models.folders import local_folder
from slimtune.models.merging import MergeReport, merge_adapter
from slimtune.models.origin import say_if_unknown
from slimtune.models.served_decoding import with_decoding_of, write_generation_config
from slimtune.report.measure_table import MEASURES, names_of, value_of
from slimtune.report.model_card import write_derived_card

_RESULT = """
## Test

The adapter, before it was merged, and the base on {rows} test rows, by `evaluate_model.py`:

| measure | base | fine-tuned |
|---|---:|---:|
{lines}

Between the numbers in brackets lies the score with 95 % confidence.
"""


def write_merged(
    stage: str, base: Path | str, adapter: Path, final: Path, config: Config
) -> MergeReport:
    """`merge_adapter` as a stage: the folder `final`, with its record."""
    with stage_folder(stage, final, config, inputs=[adapter, base]) as merged:
        folder = local_folder(base)
        generation = with_decoding_of(config, folder).generation
        say_if_unknown(adapter, folder, read_adapter_config(adapter))
        report = merge_adapter(folder, adapter, merged.folder)
        write_generation_config(merged.folder, generation)
        merged.metrics.update(vars(report))
        write_derived_card(
            merged.folder,
            str(base),
            f"with the adapter {adapter.name} merged in",
            {"parameters": report.parameters, "tensors changed": report.changed},
            base_folder=folder,
            tested=tested(adapter, config),
        )
    return report


def tested(adapter: Path, config: Config) -> str:
    """The table in Markdown; "" where the comparison that evaluation.output names has not measured
    this very training of the adapter (its run id says so), and its base beside it.
    """
    output = config.evaluation.output
    compared = read_manifest(output.with_name(f"{output.stem}_run.json"))
    trained = run_of(adapter)
    if compared and trained:
        with decoration("the test result in the model card"):
            return _told(compared, trained["run_id"])
    return ""


def _told(compared: dict[str, Any], run_id: str) -> str:
    found = compared["metrics"]
    paths = {one["path"] for one in compared["inputs"] if one["run_id"] == run_id}
    tuned = next((one for one in found["models"] if one["adapter"] in paths), None)
    if tuned is None:
        return ""
    whole = [one for one in found["models"] if one["adapter"] is None]
    base = next((one for one in whole if one["reference"] == tuned["reference"]), None)
    if base is None:
        return ""
    measured = [name for name in names_of("quality") if value_of(tuned, name) is not None]
    lines = [
        f"| {MEASURES[name].title('en')} | {_score(base, name)} | {_score(tuned, name)} |"
        for name in measured
    ]
    return _RESULT.format(rows=int(found["settings"]["rows"]), lines="\n".join(lines))


def _score(model: dict[str, Any], name: str) -> str:
    """The value with its interval, as many digits as the report gives it."""
    if model[name] is None:
        return "–"
    score, low, high = (
        MEASURES[name].written(model[name][key]) for key in ("score", "low", "high")
    )
    return f"{score} ({low} to {high})"
