"""training_report.md from a comparison and the records of the stages that led to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimtune.evaluation import report
from slimtune.evaluation.cautions import sentence
from slimtune.evaluation.comparison import Comparison
from slimtune.evaluation.outputs import metrics_of

__all__ = ["sentence", "training_report"]


def training_report(
    comparison: Comparison,
    runs: Mapping[str, Mapping[str, Any]],
    adapter: Path | None,
    language: str,
) -> str:
    """The filled report as Markdown; the curve comes from the adapter's metrics.jsonl."""
    file = adapter / "metrics.jsonl" if adapter else None
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []
    curve = [json.loads(line) for line in lines]
    return report.render(runs, metrics_of(comparison), language=language, curve=curve)
