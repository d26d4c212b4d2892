"""Turn raw rows (json, jsonl, csv, tsv, xlsx, parquet, arrow) into train, validation and test rows.

    python finetune/prepare_data.py
    python finetune/prepare_data.py --input my.csv --format-type qa --output-name mine
    python finetune/prepare_data.py --input a.csv:2,b.jsonl:0.5 --output-name mixed
    python finetune/prepare_data.py --input data/raw_data.json --input-format json \\
        --format-type alpaca --output-dir data/finetune --output-name train

reads   the raw file or folder; the base model's tokenizer, when it is there, to count tokens
writes  NAME_train.jsonl, NAME_validation.jsonl, NAME_test.jsonl (none for an empty split),
        data_report.json, .md and .png, rejected.jsonl with the reason of every row left out;
        the last four as NAME_data_report.json and so on where NAME is not `train`
"""

from pathlib import Path
from typing import TYPE_CHECKING

from slimtune.artifacts import (
    finish_files,
    refuse_finished_files,
    refuse_inputs,
    require,
    stage_files,
)
from slimtune.config import Config
from slimtune.console import note, would_write, wrote
from slimtune.errors import SlimTuneError
from slimtune.settings.commands import next_command

if TYPE_CHECKING:
    from slimtune.data.account import Fit


def main(config: Config) -> None:
    from slimtune.data import preparation, writing

    data, name = config.data, config.data.output_name
    manifest, inputs = data.output_dir / f"{name}_run.json", data.inputs()
    for path in inputs:
        require(path)
    outputs = [data.output_dir / file for file in writing.output_files(name)]
    refuse_inputs([*outputs, manifest], inputs)
    finish_files(manifest, config, outputs)
    refuse_finished_files(manifest, config, outputs)
    train, told = outputs[0], config.model.system_prompt or ""
    if config.options.dry_run:
        would_write(train, estimates=preparation.prepare(data, system_prompt=told).counts())
        return
    with (
        stage_files("prepare_data", manifest, config, outputs=outputs, inputs=inputs) as stage,
        preparation.prepare(data, stage.folder, told) as prepared,
    ):
        fit = length_limit(config)  # its libraries weigh more than the rows: not before the workers
        batch, language = config.training.rows, config.evaluation.language
        numbers = writing.write_outputs(prepared, stage.folder, name, fit, batch, language)
        stage.metrics.update(numbers)
    wrote(
        train,
        data.output_dir / writing.output_names(name)["report"],
        numbers=writing.closing_numbers(numbers, name, fit.max_length if fit else 0),
        next=next_command("train_lora", config, {"training.train_data": train}),
    )


def length_limit(config: Config) -> "Fit | None":
    """Counts a row's tokens and keeps them within the limit, if the base model's tokenizer loads.

    A folder's tokenizer must; a Hub id that cannot be reached leaves tokens uncounted.
    """
    from slimtune import prompts
    from slimtune.models import positions, tokenizers

    model = config.model.base_model
    try:
        tokenizer = tokenizers.load_tokenizer(model)
    except SlimTuneError as error:
        if Path(model).is_dir():
            raise
        note(f"tokens are not counted: {error.what} ({error.why})")
        return None
    template = prompts.template_of(config.model.prompt_template, tokenizer)
    length = positions.longest_here(config, model)
    return prompts.RowLimit(tokenizer, template, length, config.data.long_rows)


if __name__ == "__main__":
    from slimtune.script import run

    run(main, __doc__)
