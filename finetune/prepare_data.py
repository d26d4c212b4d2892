"""Turn raw rows (json, jsonl, csv) into clean train, validation and test rows.

    python finetune/prepare_data.py
    python finetune/prepare_data.py --input my.csv --format-type qa --output-name mine
    python finetune/prepare_data.py --input data/raw_data.json --input-format json \\
        --format-type alpaca --output-dir data/finetune --output-name train

reads   the raw file; the base model's tokenizer, when it is there, to count tokens
writes  NAME_train.jsonl, NAME_validation.jsonl, NAME_test.jsonl, data_report.json and .md,
        rejected.jsonl with the reason of every row left out
"""

from collections.abc import Callable
from pathlib import Path

from slimtune.artifacts import refuse_finished_files, require, stage_files
from slimtune.config import Config
from slimtune.console import near, note, would_write, wrote


def main(config: Config) -> None:
    from slimtune.data import preparation

    data = config.data
    manifest = data.output_dir / f"{data.output_name}_run.json"
    require(data.input)
    refuse_finished_files(manifest, config)
    prepared = preparation.prepare(
        data.input,
        input_format=data.input_format,
        format_type=data.format_type,
        ratios=(
            1 - data.validation_ratio - data.test_ratio,
            data.validation_ratio,
            data.test_ratio,
        ),
        seed=data.seed,
        group_column=data.group_column,
        system_prompt=config.model.system_prompt,
        encode=token_counter(config),
    )
    train = data.output_dir / f"{data.output_name}_train.jsonl"
    counts = {name: len(rows) for name, rows in prepared.splits.items()}
    counts["left out (see rejected.jsonl)"] = len(prepared.rejected)
    if config.options.dry_run:
        would_write(train, estimates=counts)
        return

    with stage_files("prepare_data", manifest, config, inputs=[data.input]) as stage:
        preparation.write(prepared, stage.folder, data.output_name)
        stage.metrics.update(prepared.numbers)
    wrote(
        train,
        data.output_dir / "data_report.md",
        numbers=counts,
        next=f"python finetune/train_lora.py --train-data {near(train)}",
    )


def token_counter(config: Config) -> Callable | None:
    """Encodes a conversation as training would, when the base model is at hand to count tokens."""
    model = config.model.base_model
    if not Path(model).is_dir():
        note(f"tokens are not counted: {near(model)} is not on this machine")
        return None
    from slimtune import prompts
    from slimtune.models import tokenizers

    tokenizer = tokenizers.load(model)
    template = prompts.resolve(config.model.prompt_template, tokenizer.chat_template)
    limit = config.training.max_length
    return lambda messages: prompts.encode(tokenizer, messages, template, limit)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
