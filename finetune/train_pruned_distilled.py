"""Prune, distil and fine-tune in one run: from the base model to a small model of your own.

    python finetune/train_pruned_distilled.py
    python finetune/train_pruned_distilled.py --ffn-ratio 0.25 --epochs 3
    python finetune/train_pruned_distilled.py --resume        # after a stop: goes on at that stage
    python finetune/train_pruned_distilled.py --stages lora,merge,evaluate --overwrite

reads   base model, teacher, prepared rows, plain text if named
writes  OUTPUT_DIR/pruned, /teacher_cache, /distilled, /lora_adapter, /final: the merged, ready
        model, /evaluation, and /card.md: what each stage cost and brought
"""

from functools import partial
from pathlib import Path

from slimtune.artifacts import require, run_of, stage_folder
from slimtune.artifacts.combined_run import links_in, run_stages, unfinished
from slimtune.config import Config
from slimtune.console import near, table, would_write, wrote
from slimtune.report.cost_card import HEADERS, cost_rows, write_card

COMMAND = "python finetune/train_pruned_distilled.py"


def main(config: Config) -> None:
    from slimtune.evaluation import evaluate as evaluation
    from slimtune.pruning.prune import estimate_pruning, prune_model
    from slimtune.training import (
        distillation,
        distillation_stage,
        estimates,
        lora,
        pipeline,
        prechecks,
        timing,
    )
    from slimtune.training.dataset import read_dataset

    base, out = config.model.base_model, config.pruned_distilled.output_dir
    links = links_in(out)
    pruned, asked, distilled, adapter, final, table_file = (one.output for one in links.values())
    compared = evaluation.settings_for(config, [pruned, distilled, final], table_file)
    chosen = evaluation.without_rows(distillation.stages_for(config), compared)
    todo = unfinished(links, chosen, config, COMMAND)
    for stopped in (out / "checkpoints", out / "distilled_checkpoints"):
        prechecks.precheck(stopped, config)
    for needed in (base, config.distillation.teacher_model, config.training.train_data):
        require(needed)
    # Before the first stage, dry or not: this finds the mistakes in the settings of the last one.
    dataset = read_dataset(base, config.model.prompt_template, config.training)
    distillation.require_teachable(config, base, dataset)
    lora.require_choices(config)
    text = distillation.passages_of(config)
    plan = dataset.summary() | {"stages": ", ".join(todo) or "none: all have finished"}
    runs = {"adapter": estimates.adapter_run(config, base, dataset.train)}
    if config.options.dry_run:
        plan |= estimate_pruning(base, config) | distillation_stage.plan_distillation(
            config, base, dataset, text
        )
        plan |= timing.dry_runs(config, base, runs, dataset.train)
        would_write(*(links[name].output for name in todo), estimates=plan)
        return

    distil = partial(
        distillation_stage.distil_student, config, str(pruned), dataset, text, distilled
    )
    train = partial(pipeline.train_adapter, config, str(distilled), dataset, adapter)
    work = {
        "prune": partial(prune_model, config, base, pruned),
        "cache": partial(distillation_stage.ask_teacher, config, dataset, text, asked),
        "distil": partial(distil, out / "distilled_checkpoints"),
        "lora": partial(train, out / "checkpoints"),
        "merge": partial(merge_adapter, config, distilled, adapter, final),
        "evaluate": partial(evaluation.compare_models, compared),
    }
    run_stages(chosen, todo, work)
    rows, card = cost_rows(links), out / "card.md"
    write_card(card, f"{near(out)}: what each stage cost and brought", rows)
    table(HEADERS, rows)
    convert = f"python finetune/convert_to_gguf.py --model-path {near(final)}"
    wrote(
        *(links[name].output for name in todo),
        card,
        numbers={"stages": plan["stages"]},
        next=convert if run_of(final) else f"{COMMAND} --resume",
    )


def merge_adapter(config: Config, distilled: Path, adapter: Path, final: Path) -> None:
    from slimtune.models.merging import merge_adapter

    inputs = [adapter, distilled]
    with stage_folder("train_pruned_distilled", final, config, inputs=inputs) as stage:
        stage.metrics.update(vars(merge_adapter(distilled, adapter, stage.folder)))


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
