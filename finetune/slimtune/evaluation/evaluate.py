"""The comparison as evaluate_model runs it: models and rows in, CSV, metrics and reports out."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slimtune.artifacts import (
    finish_files,
    lineage,
    not_without_overwrite,
    refuse_finished_files,
    refuse_inputs,
    run_of,
    stage_files,
)
from slimtune.artifacts.files import clear, read_json, write_page
from slimtune.config import Config
from slimtune.console import near
from slimtune.data.learned_rows import learned_by, with_rows_of
from slimtune.data.rows import beside
from slimtune.errors import SettingsError
from slimtune.evaluation import candidates, comparison, outputs
from slimtune.evaluation.answer_room import with_answer_room
from slimtune.evaluation.following import step_after
from slimtune.evaluation.forgetting import require_within
from slimtune.inference.questions import Candidate
from slimtune.models.positions import within_positions
from slimtune.report.forgotten import closing_lines
from slimtune.report.page import render_page
from slimtune.report.results_on_cards import put_results
from slimtune.report.training_report import Found, render_report
from slimtune.report.words import sentence

_log = logging.getLogger(__name__)

_FOLDERS = ("model", "adapter")  # the kinds whose reference has a config.json
REPORT, PAGE = "training_report.md", "report.html"


def settings_for(config: Config, models: Sequence[Path], output: Path) -> Config:
    """The settings of a comparison of the base with `models`, written to `output`."""
    named = {"models": [str(model) for model in models], "baseline": None}
    chosen = named | {"lora_model": None, "output": output}
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=chosen)})


def without_rows(stages: Sequence[str], config: Config) -> list[str]:
    """The stages, less `evaluate` where there are no test rows: it is said, and the rest goes on.

    InputError for a file of test rows that is named and not usable.
    """
    train = config.training.train_data
    if "evaluate" not in stages:
        return list(stages)
    if config.evaluation.test_data or beside(train, "test"):
        candidates.test_rows(config)
        return list(stages)
    _log.warning("evaluate: left out, there are no test rows beside %s", near(train))
    return [stage for stage in stages if stage != "evaluate"]


def written(config: Config) -> list[Path]:
    """What a comparison leaves for people to read."""
    output = config.evaluation.output
    return [output, output.with_name(PAGE), output.with_name(REPORT)]


def _all_written(config: Config) -> list[Path]:
    return [*written(config), _metrics_file(config)]


def _metrics_file(config: Config) -> Path:
    output = config.evaluation.output
    return output.with_name(f"{output.stem}_metrics.json")


def plan_comparison(config: Config) -> dict[str, str]:
    """For --dry-run: the models and how many rows, after every check that needs no model."""
    _refuse(config)
    chosen = candidates.compared_of(config)
    config = _followed(config, chosen)
    rows, _ = candidates.test_rows(config)
    questions = comparison.questions_of(rows, config.evaluation.extract)
    comparison.agreed_template(chosen, candidates.comparison_template(config), questions)
    return {"rows": str(len(rows)), "models": ", ".join(one.label for one in chosen)}


@dataclass(frozen=True)
class Closing:
    """The last words of a comparison: its table, what each step brought, what was forgotten,
    cautions, what is next."""

    headers: list[str]
    rows: list[list[str]]
    steps: dict[str, str]
    cautions: list[str]
    next: str

    @property
    def numbers(self) -> dict[str, int | str]:
        """What stands under the files that were written."""
        return {"models": len(self.rows)} | self.steps


def compare_models(config: Config, more: Sequence[Path] = ()) -> Closing:
    """Compare and write everything; `more` are models that stages before have made."""
    if more:
        models = [*config.evaluation.models, *map(str, more)]
        changed = config.evaluation.model_copy(update={"models": models})
        config = config.model_copy(update={"evaluation": changed})
    _refuse(config)
    chosen = candidates.compared_of(config)
    config = _followed(config, chosen)
    rows, test_data = candidates.test_rows(config)
    questions = comparison.questions_of(rows, config.evaluation.extract)
    config = with_answer_room(config, questions)
    inputs = [test_data, *candidates.paths(chosen)]
    manifest, all_written = _manifest(config), _all_written(config)
    with stage_files(
        "evaluate_model", manifest, config, outputs=all_written, inputs=inputs
    ) as stage:
        kept = _kept_answers(config)
        found = _compare(config, chosen, rows, kept)
        output = config.evaluation.output
        outputs.write_answers_csv(found, stage.folder / output.name)
        outputs.write_metrics(found, stage.folder / _metrics_file(config).name)
        metrics = outputs.metrics_of(found)
        stage.metrics.update(metrics)
        runs = lineage(*map(Path, inputs)) | {stage.name: stage.record()}
        told, language = Found.of(metrics, runs), config.evaluation.language
        write_page(stage.folder / REPORT, render_report(told, language))
        write_page(stage.folder / PAGE, render_page(told, language))
    shutil.rmtree(kept, ignore_errors=True)
    if cards := put_results(metrics):
        _log.info("the test result stands in %s", ", ".join(map(near, cards)))
    told = [sentence(one, language) for one in found.cautions]
    table = outputs.comparison_table(found, language)
    lines = outputs.steps(found, language) | closing_lines(found.forgotten, language)
    return Closing(*table, lines, told, step_after(config, chosen))


def judge_finished(config: Config) -> None:
    """QualityError where a finished comparison is beyond a limit of evaluation.fail_if: the very
    last word of a script."""
    file = _metrics_file(config)
    if config.evaluation.fail_if and file.is_file():
        metrics = read_json(file)
        require_within(config.evaluation, metrics["models"], metrics["forgotten"])


def _followed(config: Config, chosen: Sequence[Candidate]) -> Config:
    """With a max_length that every model folder can follow, one decoding for all, and the test rows
    that lie beside what the models were trained on where none are named."""
    config = candidates.with_decoding(config)
    if config.evaluation.test_data is None:
        config = with_rows_of(config, *candidates.trained(config))
    return within_positions(config, *(one.reference for one in chosen if one.kind in _FOLDERS))


def _compare(
    config: Config, chosen: Sequence[Candidate], rows: list, kept: Path
) -> comparison.Comparison:
    return comparison.compare(
        chosen,
        rows,
        candidates.comparison_template(config),
        config,
        learned=learned_by(*map(Path, candidates.paths(chosen))),
        kept_in=kept,
    )


def _kept_answers(config: Config) -> Path:
    """Where answers wait until the comparison is whole; emptied where all shall be made again."""
    output = config.evaluation.output
    kept = output.with_name(f"{output.stem}.answers.partial")
    if kept.is_symlink() or (config.options.overwrite and not config.options.resume):
        clear(kept)
    return kept


def finish_stopped(config: Config) -> None:
    """Give the files of a comparison that was stopped at its very end their places."""
    finish_files(_manifest(config), config, _all_written(config))


def _refuse(config: Config) -> None:
    """Raise SettingsError where finished files of this name, another's reports or inputs are."""
    settings = config.evaluation
    read = [config.model.base_model, settings.lora_model, settings.test_data]
    read += candidates.named_parts(config)
    refuse_inputs([*_all_written(config), _manifest(config)], read)
    finish_stopped(config)
    refuse_finished_files(_manifest(config), config, _all_written(config))
    output = config.evaluation.output
    report = output.with_name(REPORT)
    run = None if config.options.overwrite else run_of(report)
    other = run["settings"].get("evaluation", {}).get("output") if run else str(output)
    if other != str(output):
        another = SettingsError(
            f"{near(report)}: the report of another comparison",
            f"it belongs to {near(str(other))}",
            "give each comparison a folder of its own with --output, or add --overwrite",
        )
        not_without_overwrite(another, config)


def _manifest(config: Config) -> Path:
    output = config.evaluation.output
    return output.with_name(f"{output.stem}_run.json")
