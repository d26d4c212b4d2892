"""The embedded sample and the rows that people bring."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from slimtune.config.catalogues import names
from slimtune.config.fields import Count, Inputs, Positive, Section, Seed, Share, choice, setting
from slimtune.config.inputs import split_inputs


class SampleSection(Section):
    """The embedded example: rows whose answers a program can check, and two small Llamas."""

    output_dir: Path = setting(
        Path("data"),
        "Folder for raw_data.json, its CSV twin, and sample_text.txt: plain text of the same\n"
        "world, as the sample base model has read it.",
    )
    models_dir: Path = setting(
        Path("models/sample"), "Folder for the sample models `base` and `teacher`."
    )
    kind: Literal[(*names("sample_kinds"), "all")] = choice(
        "csv", "What is written beside raw_data.json; all: every one of them.", "sample_kinds"
    )
    rows: Positive = setting(4000, "Instruction rows to write.")
    text_lines: Positive = setting(4000, "Lines of plain text to write.")
    seed: Seed = setting(42, "Same seed, same rows, byte for byte.")
    train_models: bool = setting(
        False,
        "true trains both sample models again from nothing instead of unpacking the shipped\n"
        "ones (the time it takes is written in finetune/slimtune/sample/README.md).",
    )


class Data(Section):
    """Raw rows in, canonical train, validation and test rows out."""

    input: Inputs = setting(
        Path("data/raw_data.json"),
        "File with the raw rows, .gz or not, or a folder of such files; several with commas, each\n"
        "with a weight if need be: a.csv:2,b.jsonl:0.5 writes the rows of a.csv twice for\n"
        "training and draws half of those of b.jsonl.",
    )
    input_format: Literal[("auto", *names("file_formats"))] = choice(
        "auto", "File format; auto looks at the content, not at the name.", "file_formats"
    )
    format_type: Literal[("auto", *names("shapes"))] = choice(
        "auto", "Shape of a row; auto looks at the columns.", "shapes"
    )
    columns: str = setting(
        "",
        "What the file calls its columns, where a shape calls them otherwise:\n"
        "question=Frage,answer=Antwort. Case and spaces are forgiven without it.",
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
    test_ratio: Share = setting(
        0.1, "Share of the rows kept for the final test; of 150 rows or more, 30 at least."
    )
    validation_rows: Count = setting(
        0, "That many rows for validation instead of a share (0: the share decides)."
    )
    test_rows: Count = setting(
        0,
        "That many rows for the test instead of a share (0: the share decides). A share never\n"
        "moves old rows when new ones are added; a count hands some from the test to training.",
    )
    validation_input: Path | None = setting(
        None, "File or folder with the validation rows: the input then gives none."
    )
    test_input: Path | None = setting(
        None, "File or folder with the test rows: the input then gives none."
    )
    group_column: str = setting(
        "fact",
        "Column whose value decides the split, so that rows with the same value stay together;\n"
        "rows without it (and an empty setting) are split by their prompt.",
    )
    seed: Seed = setting(42, "Another seed, another split.")
    duplicates: Literal[names("duplicates")] = choice(
        "near", "Which repeated rows are dropped.", "duplicates"
    )
    drop_leaks: bool = setting(
        True,
        "true drops training rows whose question, near duplicates included, is asked in the test\n"
        "or validation rows too; with false the test measures memory.",
    )
    similarity: float = setting(
        0.0,
        "Rows also count as near duplicates, or as leaks, from this similarity on (0.8: small\n"
        "edits; shared runs of 5 characters, 3 in Chinese; Jaccard, estimated within 0.1). It\n"
        "costs 256 bytes a row. 0: off, for rows of one pattern, such as the sample's sums, are\n"
        "all alike.",
        ge=0,
        le=1,
    )
    leak_similarity: float = setting(
        0.0,
        "The same for leaks alone: training rows go whose question is that similar to one in test\n"
        "or validation. 0: as `similarity` says. The report always tells how many test questions\n"
        "are 0.5 like a training question. Off, for 0.5 takes 7 % of banking77's training rows,\n"
        "28 % of FastChat's, 45 % of the sample's, and 0.8 finds next to nothing in any of them.",
        ge=0,
        le=1,
    )
    trim_turns: bool = setting(
        True,
        "true cuts a conversation that starts with the assistant or ends with the user down to\n"
        "whole exchanges; false rejects it.",
    )
    neutralise_special_tokens: bool = setting(
        True,
        "true puts a space into texts that a tokenizer would read as control tokens (<s>, [INST],\n"
        "<|im_end|>), which would end a turn early; false leaves them.",
    )
    placeholders: Literal[names("placeholders")] = choice(
        "reject",
        "Answers that are only what stands for no value: nan, None, NULL, N/A, #REF!, 无.",
        "placeholders",
    )
    several_answers: Literal[names("several_answers")] = choice(
        "ask", "What a list in place of an answer means.", "several_answers"
    )
    encoding: str = setting(
        "auto",
        "Encoding of text files: auto, or a name such as utf-8, gb18030, big5, shift_jis, euc_kr.",
        pattern=r"^[\w.-]+$",
    )
    inspect_texts: bool = setting(
        True, "true counts rows with HTML entities (&amp;) and mojibake; nothing is changed."
    )
    long_rows: Literal[names("long_rows")] = choice(
        "truncate_prompt",
        "What becomes of rows longer than --max-length tokens. No answer is cut.",
        "long_rows",
    )
    max_bad_rows: float = setting(
        0.5,
        "Stops with exit 3 when more rows than this are rejected: below 1 a share of all rows,\n"
        "from 1 on a count.",
        ge=0,
    )
    workers: Count = setting(
        0,
        "Processes that parse and clean, the output is the same; each takes about 80 MB. 0: one\n"
        "for each 64 MB of input, at most as many as there are cores, and at most 8.",
    )

    def inputs(self) -> list[Path]:
        """Every file and folder that is read."""
        given = [path for path in (self.validation_input, self.test_input) if path]
        return [one.path for one in split_inputs(self.input)] + given

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "Data":
        if self.validation_ratio + self.test_ratio >= 1:
            raise ValueError("validation_ratio + test_ratio must stay below 1")
        return self

    @model_validator(mode="after")
    def _similarity_has_an_effect(self) -> "Data":
        if self.similarity and self.duplicates != "near" and not self.drop_leaks:
            raise ValueError("similarity needs duplicates: near, or drop_leaks: true")
        if self.leak_similarity and not self.drop_leaks:
            raise ValueError("leak_similarity needs drop_leaks: true")
        return self
