"""Prune, distil and fine-tune in one run: from the base model to a small model of your own.

    python finetune/train_pruned_distilled.py
    python finetune/train_pruned_distilled.py --ffn-ratio 0.25 --epochs 3
    python finetune/train_pruned_distilled.py --resume        # after a stop: goes on at that stage

reads   base model, teacher, prepared rows, plain text if named
writes  OUTPUT_DIR/pruned, /distilled, /lora_adapter, and /final: the merged, ready model
"""

from pathlib import Path

from slimtune.artifacts import refuse_finished, require, run_of, stage_folder
from slimtune.config import Config
from slimtune.console import near, note, would_write, wrote


def main(config: Config) -> None:
    from slimtune.models.merging import merge
    from slimtune.pruning.stage import estimate, prune_model
    from slimtune.training import estimates, lora, starting, students
    from slimtune.training.distillation import passages_of, require_pair
    from slimtune.training.reading import read_lessons
    from slimtune.training.stages import train_adapter
    from slimtune.training.timing import dry_runs

    base, folder = config.model.base_model, config.pruned_distilled.output_dir
    pruned, distilled = folder / "pruned", folder / "distilled"
    adapter, final = folder / "lora_adapter", folder / "final"
    checkpoints, distilled_checkpoints = folder / "checkpoints", folder / "distilled_checkpoints"
    refuse_finished(final, config)
    for stopped in (checkpoints, distilled_checkpoints):
        starting.check(stopped, config)
    for needed in (base, config.distillation.teacher_model, config.training.train_data):
        require(needed)
    lessons = read_lessons(base, config.model.prompt_template, config.training)
    require_pair(config, base, lessons)
    text = passages_of(config.distillation.text_data, config.distillation.text_passages)
    # Before the first stage, dry or not: this finds the mistakes in the settings of the last one.
    lora.require_choices(config)
    runs = {"distillation": estimates.student_run(config, base, lessons, text)}
    runs["adapter"] = estimates.adapter_run(config, base, lessons.train)
    if config.options.dry_run:
        plan = estimate(base, config) | dry_runs(config, base, runs, lessons.train)
        would_write(pruned, distilled, adapter, final, estimates=lessons.summary() | plan)
        return

    if not _done(pruned, config):
        prune_model(config, base, pruned)
    if not _done(distilled, config):
        students.distil_student(
            config, str(pruned), lessons, text, distilled, distilled_checkpoints
        )
    if not _done(adapter, config):
        train_adapter(config, str(distilled), lessons, adapter, checkpoints)
    note("final: merging the adapter into the distilled model")
    with stage_folder(
        "train_pruned_distilled", final, config, inputs=[adapter, distilled]
    ) as stage:
        report = merge(distilled, adapter, stage.folder)
        stage.metrics.update(vars(report) | {"losses": _losses(distilled, adapter)})

    wrote(
        final,
        numbers={"parameters": f"{report.parameters:,}"}
        | {name: f"{loss:.4f}" for name, loss in _losses(distilled, adapter).items()},
        next=f"python finetune/convert_to_gguf.py --model-path {near(final)}",
    )


def _done(stage: Path, config: Config) -> bool:
    """With --resume, a stage that has finished is not run again."""
    finished = config.options.resume and run_of(stage) is not None
    note(f"{stage.name}: {'finished already' if finished else 'starting'}")
    return finished


def _losses(*stages: Path) -> dict[str, float]:
    """Best validation loss of each training stage."""
    runs = {stage.name: run_of(stage) for stage in stages}
    return {
        f"validation loss, {name}": run["metrics"]["validation_loss_best"]
        for name, run in runs.items()
        if run and run["metrics"]["validation_loss_best"] is not None
    }


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
