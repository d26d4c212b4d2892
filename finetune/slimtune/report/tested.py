"""What a comparison found of an adapter, for the card of the model that it is merged into."""

from pathlib import Path
from typing import Any

from slimtune.artifacts.records import read_manifest, run_of
from slimtune.config import Config
from slimtune.console import decoration
from slimtune.report.measure_table import MEASURES, names_of, value_of

_RESULT = """
## Test

The adapter, before it was merged, and the base on {rows} test rows, by `evaluate_model.py`:

| measure | base | fine-tuned |
|---|---:|---:|
{lines}

Between the numbers in brackets lies the score with 95 % confidence.
"""


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
