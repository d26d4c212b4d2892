"""Prune, distil and fine-tune in one run: from the base model to a small model of your own.

    python finetune/train_pruned_distilled.py
    python finetune/train_pruned_distilled.py --ffn-ratio 0.25 --epochs 3
    python finetune/train_pruned_distilled.py --resume        # after a stop: goes on at that stage
    python finetune/train_pruned_distilled.py --stages lora,merge,evaluate --overwrite
    python finetune/train_pruned_distilled.py --target-size 90MB --resume    # the best that fits

reads   base model, teacher, prepared rows, plain text if named; with a size the unpruned fine-tune
writes  OUTPUT_DIR/pruned, /teacher_cache, /distilled, /lora_adapter, /final: the merged, ready
        model, /evaluation, and /card.md: what each stage cost and brought; with a size /gguf
"""

from slimtune.artifacts import refuse_inputs, require
from slimtune.artifacts.combined_run import chosen_stages, links_in, run_stages, stages_to_run
from slimtune.config import Config
from slimtune.console import would_write, wrote
from slimtune.report.cost_card import best_that_fits, show_card
from slimtune.settings.commands import next_command

STAGE = "train_pruned_distilled"


def main(config: Config) -> None:
    from slimtune.evaluation import evaluate, following, merge_stage
    from slimtune.export import sized
    from slimtune.models import served_decoding
    from slimtune.pruning.prune import estimate_pruning, parameters_left, prune_model
    from slimtune.training import auto_teacher, distillation, lora, pipeline, prechecks, timing
    from slimtune.training.dataset import read_dataset
    from slimtune.training.distillation_stage import ask_teacher, plan_distillation, student

    base, out = config.model.base_model, config.pruned_distilled.output_dir
    config = auto_teacher.with_teacher(config, base, unpruned=base)
    teacher, learned = config.distillation.teacher_model, config.training
    rows = [learned.train_data, learned.val_data, learned.replay_data, config.evaluation.test_data]
    refuse_inputs([out], [base, teacher, config.distillation.text_data, *rows])
    links = links_in(out, config.gguf.size_name)
    pruned, asked, distilled, adapter, final, *gguf, table = (one.output for one in links.values())
    compared = evaluate.settings_for(config, [pruned, distilled, final], table)
    chosen = evaluate.without_rows(chosen_stages(config), compared)
    if "evaluate" in chosen:
        evaluate.finish_stopped(compared)
    command = next_command(STAGE, config, leave=("pruned_distilled.stages",))
    todo = stages_to_run(links, chosen, config, command)
    if "convert" in todo:
        sized.require_room(config, base, parameters_left(base, pruned, config))
    stopped, stopped_student = out / "checkpoints", out / "distilled_checkpoints"
    prechecks.precheck(config, stopped, stopped_student, goes_on=len(todo) < len(chosen))
    require(config.training.train_data)
    config = served_decoding.settled(config, base, teacher)
    # Before the first stage, dry or not: this finds the mistakes in the settings of the last one.
    template, modelfile = config.model.prompt_template, config.gguf.wants_modelfile
    dataset = read_dataset(base, template, config.training, modelfile=modelfile)
    distillation.require_teachable(config, base)
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
        "prune": lambda: prune_model(config, base, pruned),
        "cache": lambda: ask_teacher(config, base, dataset, text, asked),
        "distil": lambda: pipeline.train(config, taught, dataset, distilled, stopped_student),
        "lora": lambda: pipeline.train(config, tuned, dataset, adapter, stopped),
        "merge": lambda: merge_stage.write_merged(STAGE, distilled, adapter, final, config),
        "convert": lambda: sized.write_sized(config, base, final, *gguf),
        "evaluate": lambda: evaluate.compare_models(compared, sized.written(gguf)),
    }
    run_stages(chosen, todo, work)
    show_card(links, out / "card.md")
    next = following.step_after_combined(config, final, sized.written(gguf), command)
    written, numbers = [links[name].output for name in todo], best_that_fits(table)
    wrote(*written, out / "card.md", numbers={"stages": stages} | numbers, next=next)
    evaluate.judge_finished(compared)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
