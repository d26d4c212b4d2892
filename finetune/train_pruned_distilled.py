"""Prune, distil and fine-tune in one run: from the base model to a small model of your own.

    python finetune/train_pruned_distilled.py
    python finetune/train_pruned_distilled.py --resume        # after a stop: goes on at that stage
    python finetune/train_pruned_distilled.py --stages lora,merge,evaluate --overwrite
    python finetune/train_pruned_distilled.py --target-size 90MB --resume    # the best that fits

reads   base model, teacher, prepared rows, plain text if named; with a size the unpruned fine-tune
writes  OUTPUT_DIR/pruned, /teacher_cache, /distilled, /lora_adapter, /final: the ready model,
        /evaluation, /card.md; if asked for /trimmed, /recovered, /final-TYPE, /gguf
"""

from slimtune.artifacts import combined_run, refuse_inputs, require
from slimtune.config import Config
from slimtune.console import would_write, wrote
from slimtune.report.cost_card import best_that_fits, show_card
from slimtune.settings.commands import next_command


def main(config: Config) -> None:
    from slimtune.evaluation import evaluate, following
    from slimtune.evaluation.merge_stage import write_merged
    from slimtune.export import sized
    from slimtune.models import served_decoding
    from slimtune.pruning import prune, recovery_stage
    from slimtune.quantised import last_stage
    from slimtune.training import auto_teacher, distillation, lora, pipeline, prechecks, timing
    from slimtune.training.dataset import dataset_of, read_after_trim
    from slimtune.training.distillation_stage import ask_teacher, plan_distillation, student

    base, out = config.model.base_model, config.pruned_distilled.output_dir
    config = prune.with_text_in_use(auto_teacher.with_teacher(config, base, unpruned=base))
    teacher, learned = config.distillation.teacher_model, config.training
    rows = [learned.train_data, learned.val_data, learned.replay_data, config.evaluation.test_data]
    refuse_inputs([out], [base, teacher, config.distillation.text_data, *rows])
    links = combined_run.links_in(config)
    pruned, asked, distilled, adapter, final, *gguf, table = combined_run.outputs_of(links)
    whole, learns = combined_run.models_in(links, base)
    compared = evaluate.settings_for(config, combined_run.compared_in(links), table)
    chosen = evaluate.without_rows(combined_run.chosen_stages(config), compared)
    if "evaluate" in chosen:
        evaluate.finish_stopped(compared)
    command = next_command(combined_run.STAGE, config, leave=("pruned_distilled.stages",))
    todo = combined_run.stages_to_run(links, chosen, config, command)
    last_stage.require_room(config, base, todo, lambda: prune.parameters_left(base, pruned, config))
    tuning, teaching, rounding = combined_run.checkpoints_in(out)
    prechecks.precheck(config, tuning, teaching, rounding, goes_on=len(todo) < len(chosen))
    require(config.training.train_data)
    config, last = last_stage.parted(served_decoding.settled(config, base, teacher))
    dataset = dataset_of(config, base)  # dry or not: mistakes of the last stage's settings are told
    rows_of = read_after_trim(config, dataset)
    distillation.require_teachable(config, base)
    lora.require_choices(config)
    text = distillation.passages_of(config)
    runs = {"adapter": pipeline.adapter(base).plan(config, dataset)}
    stages = ", ".join(todo) or "none: all have finished"
    taught, tuned = student(config, str(learns), text), pipeline.adapter(str(distilled))
    if config.options.dry_run:
        pipeline.require_resumable(config, taught, dataset, teaching)
        pipeline.require_resumable(config, tuned, dataset, tuning)
        plan = dataset.summary() | {"stages": stages} | prune.estimate_pruning(base, config)
        plan |= plan_distillation(config, base, dataset, text)
        plan |= timing.dry_runs(config, base, runs, dataset.train)
        would_write(*(links[name].output for name in todo), estimates=plan)
        return
    work = {
        "vocabulary": lambda: prune.trim_model(config, base, whole),
        "prune": lambda: prune.cut_model(config, str(whole), pruned),
        "blocks": lambda: recovery_stage.recover_model(config, str(whole), pruned, learns),
        "cache": lambda: ask_teacher(config, str(whole), rows_of(whole), text, asked),
        "distil": lambda: pipeline.train(config, taught, rows_of(learns), distilled, teaching),
        "lora": lambda: pipeline.train(config, tuned, rows_of(distilled), adapter, tuning),
        "merge": lambda: write_merged(combined_run.STAGE, distilled, adapter, final, config),
        "quantise": lambda: last_stage.distil(last, links, rounding),
        "convert": lambda: sized.write_sized(config, base, final, *gguf),
        "evaluate": lambda: evaluate.compare_models(compared, last_stage.written(links)),
    }
    combined_run.run_stages(chosen, todo, work)
    show_card(links, out / "card.md")
    next = following.step_after_combined(config, final, last_stage.written(links), command)
    written, numbers = [links[name].output for name in todo], best_that_fits(table)
    wrote(*written, out / "card.md", numbers={"stages": stages} | numbers, next=next)
    evaluate.judge_finished(compared)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
