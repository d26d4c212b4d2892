"""Compare models on rows kept aside, chat with one, or merge an adapter into its base.

    python finetune/evaluate_model.py                          # base against fine-tuned
    python finetune/evaluate_model.py --models models/pruned,models/gguf/NAME-Q4_K_M.gguf
    python finetune/evaluate_model.py --models ollama:llama3.2:3b,http://127.0.0.1:8080/v1#NAME
    python finetune/evaluate_model.py --models BASE.gguf+ADAPTER.gguf
    python finetune/evaluate_model.py --base-model models/sample/base \\
        --lora-model models/finetuned/lora_adapter \\
        --test-data data/finetune/train_test.jsonl --output evaluation_results.csv
    python finetune/evaluate_model.py --interactive            # a chat; /exit ends it
    python finetune/evaluate_model.py --merge                  # -> models/finetuned/merged_model

reads   base model, adapter, other models (servers too), prepared test rows
writes  evaluation_results.csv; evaluation_results_metrics.json, report.html and training_report.md
        beside it; with --merge the merged model
"""

from pathlib import Path

from slimtune.artifacts import refuse_finished, refuse_inputs, require
from slimtune.config import Config
from slimtune.console import note, size, table, would_write, wrote
from slimtune.settings.commands import next_command


def main(config: Config) -> None:
    only_talk = config.evaluation.interactive and config.evaluation.models
    for model in filter(None, [config.model.base_model, config.evaluation.lora_model]):
        if not only_talk:
            require(model)
    if config.evaluation.merge:
        merge(config)
    elif config.evaluation.interactive:
        chat(config)
    else:
        show_comparison(config)


def merge(config: Config) -> None:
    """Base + adapter -> an ordinary model folder, tensor by tensor."""
    from slimtune.evaluation import merge_stage
    from slimtune.models import merging
    from slimtune.models.folders import local_folder

    base, adapter = config.model.base_model, config.evaluation.lora_model
    final = config.evaluation.merged_dir or Path(adapter or base).with_name("merged_model")
    refuse_inputs([final], [base, adapter])
    pair = merging.require_adapter_of(local_folder(base), adapter)
    refuse_finished(final, config)
    if config.options.dry_run:
        would_write(final, estimates={"on disk": size(pair.bytes), "memory": pair.memory_words})
        return
    report = merge_stage.write_merged("merge", base, adapter, final, config)
    told = {"merged": f"{report.changed} of {report.tensors} tensors changed"}
    told |= {"on disk": size(report.bytes)}
    wrote(
        final,
        numbers=told,
        next=next_command("convert_to_gguf", config, {"gguf.model_path": final}),
    )


def chat(config: Config) -> None:
    """A conversation on the terminal with the last of the models; /model changes to another."""
    from slimtune.chat import conversation
    from slimtune.evaluation import candidates

    conversation.hold_chat(candidates.partners_of(config), config)


def show_comparison(config: Config) -> None:
    """One table, one CSV, one report: every model on the same rows, the first the baseline."""
    from slimtune.evaluation import evaluate

    if config.options.dry_run:
        would_write(*evaluate.written(config), estimates=evaluate.plan_comparison(config))
        return
    found = evaluate.compare_models(config)
    table(found.headers, found.rows)
    for caution in found.cautions:
        note(f"caution: {caution}")
    wrote(*evaluate.written(config), numbers=found.numbers, next=found.next)
    evaluate.judge_finished(config)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
