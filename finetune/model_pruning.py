"""Make a model smaller: cut the FFN neurons that matter least, the same number in every layer.

    python finetune/model_pruning.py
    python finetune/model_pruning.py --model-path models/finetuned/merged_model --ffn-ratio 0.25
    python finetune/model_pruning.py --dry-run

reads   a model folder, tensor by tensor: a 70B model needs no more memory than a 1B one
writes  OUTPUT_DIR, an ordinary smaller model that loads, trains and converts like any other
"""

from slimtune.artifacts import refuse_finished, require
from slimtune.config import Config
from slimtune.console import near, size, would_write, wrote


def main(config: Config) -> None:
    from slimtune.pruning.stage import estimate, prune_model

    model, final = config.pruning.model_path, config.pruning.output_dir
    refuse_finished(final, config)
    require(model)
    if config.options.dry_run:
        would_write(final, estimates=estimate(model, config.pruning.ffn_ratio))
        return

    report = prune_model(config, model, final)
    before, after = report.parameters_before, report.parameters_after
    wrote(
        final,
        numbers={
            "parameters": f"{before:,} -> {after:,} (-{1 - after / before:.1%})",
            "on disk": f"{size(report.bytes_before)} -> {size(report.bytes_after)}",
            "FFN neurons a layer": f"{report.ffn_before} -> {report.ffn_after}",
            "note": "a pruned model answers worse until it has been distilled or trained",
        },
        next=f"python finetune/knowledge_distillation.py --student-model {near(final)}",
    )


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
