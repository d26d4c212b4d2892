"""The embedded sample and the rows that people bring."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from slimtune.config.fields import Positive, Section, Share, setting


class Sample(Section):
    """The embedded example: rows whose answers a program can check, and two small Llamas."""

    output_dir: Path = setting(
        Path("data"),
        "Folder for raw_data.json, its CSV twin, and sample_text.txt: plain text of the same\n"
        "world, as the sample base model has read it.",
    )
    models_dir: Path = setting(
        Path("models/sample"), "Folder for the sample models `base` and `teacher`."
    )
    kind: Literal["csv", "jsonl", "sharegpt", "gbk", "all"] = setting(
        "csv",
        "What is written beside raw_data.json: csv (as Excel saves it), jsonl, sharegpt, gbk (a\n"
        "CSV in the encoding of Chinese Windows), or all of them.",
    )
    rows: Positive = setting(4000, "Instruction rows to write.")
    text_lines: Positive = setting(4000, "Lines of plain text to write.")
    seed: int = setting(42, "Same seed, same rows, byte for byte.")
    train_models: bool = setting(
        False,
        "true trains both sample models again from nothing instead of unpacking the shipped\n"
        "ones (the time it takes is written in finetune/slimtune/sample/README.md).",
    )


class Data(Section):
    """Raw rows in, canonical train, validation and test rows out."""

    input: Path = setting(Path("data/raw_data.json"), "File with the raw rows.")
    input_format: Literal["auto", "json", "jsonl", "csv"] = setting(
        "auto", "File format; auto looks at the content, not at the name."
    )
    format_type: Literal["auto", "alpaca", "qa", "messages", "sharegpt"] = setting(
        "auto",
        "Shape of a row: alpaca (instruction, input, output), qa (question, answer), messages\n"
        "(OpenAI), sharegpt (conversations); auto looks at the columns.",
    )
    output_dir: Path = setting(Path("data/finetune"), "Folder for the prepared rows.")
    output_name: str = setting(
        "train",
        "Files are named NAME_train.jsonl, NAME_validation.jsonl, NAME_test.jsonl.",
        pattern=r"^[\w.-]+$",
    )
    validation_ratio: Share = setting(
        0.05, "Share of the rows kept for validation during training."
    )
    test_ratio: Share = setting(0.1, "Share of the rows kept for the final test.")
    group_column: str = setting(
        "fact",
        "Column whose value decides the split, so that rows with the same value stay together;\n"
        "rows without it (and an empty setting) are split by their prompt.",
    )
    seed: int = setting(42, "Another seed, another split.")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "Data":
        if self.validation_ratio + self.test_ratio >= 1:
            raise ValueError("validation_ratio + test_ratio must stay below 1")
        return self
