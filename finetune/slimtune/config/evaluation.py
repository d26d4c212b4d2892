"""Comparison, chat, merge and report."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from slimtune.config.fields import Model, Positive, Section, setting


class Evaluation(Section):
    """An honest before and after: the same rows and prompt, one model in memory at a time."""

    lora_model: Path | None = setting(
        Path("models/finetuned/lora_adapter"),
        "Adapter to put on the base model; null: none.",
    )
    models: list[Model] = setting(
        [], "More models to compare: folders, Hub ids or .gguf files, separated by commas."
    )
    test_data: Path | None = setting(
        None,
        "Prepared rows to test on; null: the NAME_test.jsonl beside the training rows.",
    )
    output: Path = setting(
        Path("models/evaluation/evaluation_results.csv"),
        "CSV with one row a prompt; metrics and the reports go beside it. An unfinished run of\n"
        "the same name goes on with the answers it has, unless --overwrite asks for new ones.",
    )
    max_rows: Annotated[int, Field(ge=0)] = setting(0, "Test rows to use; 0: all.")
    max_new_tokens: Positive = setting(
        32, "Longest answer in tokens. A chat lets an answer grow to 512; Ctrl-C stops it."
    )
    token_budget: Positive = setting(
        8192,
        "Tokens of prompts and answers in a batch. Less takes less memory and more time; a batch\n"
        "that does not fit is halved by itself.",
    )
    extract: Literal["whole", "number", "gsm8k", "option"] = setting(
        "whole",
        "What of an answer must match the reference: whole, the last number, the number after\n"
        '#### (gsm8k), or the option letter. A row\'s own field "extract" comes first.',
    )
    interactive: bool = setting(False, "true opens a chat instead.")
    merge: bool = setting(False, "true merges the adapter into the base and stops.")
    merged_dir: Path | None = setting(
        None,
        "Folder for the merged model; null: merged_model beside the adapter.",
        flag="output-dir",
    )
    language: Literal["en", "zh"] = setting("en", "Language of the reports.")
