"""Make a model smaller: cut what matters least, the same amount in every layer, and refit the rest.

    python finetune/model_pruning.py
    python finetune/model_pruning.py --model-path models/finetuned/merged_model --ffn-ratio 0.25
    python finetune/model_pruning.py --target-params 5B --dry-run
    python finetune/model_pruning.py --criterion magnitude --calibration none     # tensor by tensor

reads   a model folder, one layer at a time; prepared rows to calibrate with
writes  OUTPUT_DIR, an ordinary smaller model that loads, trains and converts like any other
"""

from slimtune.artifacts import refuse_finished, refuse_inputs, require
from slimtune.config import Config
from slimtune.console import table, would_write, wrote
from slimtune.settings.commands import next_command


def main(config: Config) -> None:
    from slimtune.data.learned_rows import with_rows_of

    model, final = config.pruning.model_path, config.pruning.output_dir
    config = with_rows_of(config, model)
    refuse_inputs([final], [model, config.training.train_data])
    refuse_finished(final, config)
    require(model)

    # Five seconds of torch, which what stands above is told without.
    from slimtune.pruning.prune import estimate_pruning, prune_model
    from slimtune.pruning.sparsity import NOTICE

    if config.options.dry_run:
        would_write(final, estimates=estimate_pruning(model, config))
        return

    report = prune_model(config, model, final)
    before, after = report.before.parameters, report.after.parameters
    note = "a pruned model answers worse until it has been distilled or trained"
    table(["", "before", "after"], report.rows())
    wrote(
        final,
        numbers={
            "parameters": f"{before:,} -> {after:,} (-{1 - after / before:.1%})",
            "note": NOTICE if config.pruning.sparsity else note,
        },
        next=next_command("knowledge_distillation", config, {"distillation.student_model": final}),
    )


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
