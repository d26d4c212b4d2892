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
from slimtune.report.model_card import write_derived_card
from slimtune.report.results_on_cards import section_of

_SAID = "The adapter before it was merged, measured by `evaluate_model.py`."


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
    """The section of the card; "" where the comparison that evaluation.output names has not
    measured this very training of the adapter: its run id says so.
    """
    output = config.evaluation.output
    compared = read_manifest(output.with_name(f"{output.stem}_run.json"))
    trained = run_of(adapter)
    if compared and trained:
        with decoration("the test result in the model card"):
            return _told(compared, trained["run_id"])
    return ""


def _told(compared: dict[str, Any], run_id: str) -> str:
    metrics = compared["metrics"]
    paths = {one["path"] for one in compared["inputs"] if one["run_id"] == run_id}
    tuned = next((one for one in metrics["models"] if one["adapter"] in paths), None)
    return section_of(metrics, tuned, _SAID) if tuned else ""
