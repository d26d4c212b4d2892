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

from slimtune.artifacts import refuse_inputs, require, run_of
from slimtune.artifacts.combined_run import links_in, run_stages, stages_to_run
from slimtune.config import Config
from slimtune.console import decoration, near, table, would_write, wrote
from slimtune.report.cost_card import closing_table, cost_rows, write_card
from slimtune.settings.commands import next_command

STAGE = "train_pruned_distilled"


def main(config: Config) -> None:
    from slimtune.evaluation import evaluate
    from slimtune.models import merging, served_decoding
    from slimtune.pruning.prune import estimate_pruning, prune_model
    from slimtune.training import auto_teacher, distillation, lora, pipeline, prechecks, timing
    from slimtune.training.dataset import read_dataset
    from slimtune.training.distillation_stage import ask_teacher, plan_distillation, student

    base, out = config.model.base_model, config.pruned_distilled.output_dir
    config = auto_teacher.with_teacher(config, base, unpruned=base)
    teacher, text_data = config.distillation.teacher_model, config.distillation.text_data
    rows = [config.training.train_data, config.training.val_data, config.evaluation.test_data]
    refuse_inputs([out], [base, teacher, text_data, *rows])
    links = links_in(out)
    pruned, asked, distilled, adapter, final, table_file = (one.output for one in links.values())
    compared = evaluate.settings_for(config, [pruned, distilled, final], table_file)
    chosen = evaluate.without_rows(distillation.stages_for(config), compared)
    if "evaluate" in chosen:
        evaluate.finish_stopped(compared)
    command = next_command(STAGE, config, leave=("pruned_distilled.stages",))
    todo = stages_to_run(links, chosen, config, command)
    stopped, stopped_student = out / "checkpoints", out / "distilled_checkpoints"
    prechecks.precheck(config, stopped, stopped_student, goes_on=len(todo) < len(chosen))
    require(config.training.train_data)
    config = served_decoding.settled(config, base, teacher)
    # Before the first stage, dry or not: this finds the mistakes in the settings of the last one.
    template, modelfile = config.model.prompt_template, config.gguf.wants_modelfile
    dataset = read_dataset(base, template, config.training, modelfile=modelfile)
    distillation.require_teachable(config, base, dataset)
    lora.require_choices(config)
    text = distillation.passages_of(config)
    runs = {"adapter": pipeline.adapter(base).plan(config, dataset)}
    stages = ", ".join(todo) or "none: all have finished"
    taught, tuned = student(config, str(pruned), text), pipeline.adapter(str(distilled))
    if config.options.dry_run:
        pipeline.require_resumable(config, taught, dataset, stopped_student)
        pipeline.require_resumable(config, tuned, dataset, stopped)
        plan = dataset.summary() | {"stages": stages} | estimate_pruning(base, config)
        plan |= plan_distillation(config, base, dataset, text)
        plan |= timing.dry_runs(config, base, runs, dataset.train)
        would_write(*(links[name].output for name in todo), estimates=plan)
        return
    work = {
        "prune": partial(prune_model, config, base, pruned),
        "cache": partial(ask_teacher, config, dataset, text, asked),
        "distil": partial(pipeline.train, config, taught, dataset, distilled, stopped_student),
        "lora": partial(pipeline.train, config, tuned, dataset, adapter, stopped),
        "merge": partial(merging.write_merged, STAGE, distilled, adapter, final, config),
        "evaluate": partial(evaluate.compare_models, compared),
    }
    run_stages(chosen, todo, work)
    rows, card = [], out / "card.md"
    with decoration(near(card)):
        rows = cost_rows(links)
        write_card(card, f"{near(out)}: what each stage cost and brought", rows)
    table(*closing_table(rows))
    convert = next_command("convert_to_gguf", config, {"gguf.model_path": final})
    next = convert if run_of(final) else f"{command} --resume"
    wrote(*(links[name].output for name in todo), card, numbers={"stages": stages}, next=next)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
