"""The comparison as evaluate_model runs it: candidates and rows in, CSV, metrics and report out."""

from pathlib import Path

from slimtune.artifacts import lineage, refuse_finished_files, stage_files
from slimtune.config import Config
from slimtune.evaluation import candidates, comparison, outputs, reporting

REPORT = "training_report.md"


def plan(config: Config) -> dict[str, str]:
    """For --dry-run: the models and how many rows, after every check that needs no model."""
    chosen = candidates.of(config)
    rows, _ = candidates.test_rows(config)
    refuse_finished_files(_manifest(config), config)
    return {"rows": str(len(rows)), "models": ", ".join(one.label for one in chosen)}


def compare_models(config: Config) -> tuple[list[str], list[list[str]], list[str]]:
    """Compare, write everything, and return the table (headers, rows) and the cautions."""
    settings = config.evaluation
    manifest = _manifest(config)
    refuse_finished_files(manifest, config)
    chosen = candidates.of(config)
    rows, test_data = candidates.test_rows(config)
    inputs = [test_data, *candidates.paths(chosen)]
    with stage_files("evaluate_model", manifest, config, inputs=inputs) as stage:
        found = comparison.compare(
            chosen,
            rows,
            template=candidates.template(config),
            max_length=config.training.max_length,
            max_new_tokens=settings.max_new_tokens,
            device=config.model.device,
            dtype=config.model.dtype,
            quantize=config.model.use_quantization,
        )
        outputs.write_csv(found, stage.folder / settings.output.name)
        outputs.write_metrics(found, stage.folder / f"{settings.output.stem}_metrics.json")
        stage.metrics.update(outputs.metrics_of(found))
        runs = lineage(*map(Path, inputs)) | {stage.name: stage.record()}
        text = reporting.training_report(found, runs, settings.lora_model, settings.language)
        (stage.folder / REPORT).write_text(text, encoding="utf-8")
    headers, lines = outputs.table(found)
    return headers, lines, [reporting.sentence(one) for one in found.cautions]


def _manifest(config: Config) -> Path:
    output = config.evaluation.output
    return output.with_name(f"{output.stem}_run.json")
