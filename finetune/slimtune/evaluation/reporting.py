"""training_report.md and report.html from a comparison and the records that led to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimtune.evaluation import page, report
from slimtune.evaluation.cautions import sentence
from slimtune.evaluation.comparison import Comparison
from slimtune.evaluation.outputs import metrics_of

__all__ = ["reports", "sentence"]


def reports(
    comparison: Comparison,
    runs: Mapping[str, Mapping[str, Any]],
    adapter: Path | None,
    language: str,
) -> tuple[str, str]:
    """The filled report as Markdown and as HTML; the adapter's metrics.jsonl is the curve."""
    file = adapter / "metrics.jsonl" if adapter else None
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []
    curve = [json.loads(line) for line in lines]
    told = runs, metrics_of(comparison)
    return (
        report.render(*told, language=language, curve=curve),
        page.render(*told, language=language, curve=curve),
    )
