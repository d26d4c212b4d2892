"""A teacher that writes: its own answers to the prompts of prepared rows, for a student to learn.

Sequence-level distillation (Kim and Rush, arXiv:1606.07947): nothing but text goes from one to the
other, so the two may have different tokenizers, and the teacher may be a server's. The rows are a
finished stage folder, named by a hash of everything its answers depend on; a stopped run goes on
with the answers it has.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from slimtune import prompts
from slimtune.artifacts import Stage, require, run_of, sha256, stage_folder
from slimtune.config import Config
from slimtune.config.fields import ELSEWHERE
from slimtune.console import near
from slimtune.data.rows import CanonicalRow, read_rows, validation_file
from slimtune.data.turns import without_special_tokens
from slimtune.errors import InputError
from slimtune.inference.answers import Generation
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import open_engine
from slimtune.inference.kept_answers import Predictions, RowNumbers
from slimtune.inference.questions import Candidate, Question
from slimtune.models.folders import weights_identity
from slimtune.models.gguf_header import is_gguf
from slimtune.prompts import encode_prompt
from slimtune.training.gguf_teacher import file_facts
from slimtune.training.served_teacher import ServedTeacher

_log = logging.getLogger(__name__)


def answered(config: Config) -> Config:
    """The settings with rows whose last answers the teacher wrote in place of the prepared rows.

    It is asked greedily, with its own tokenizer and template, and only for what no earlier run
    asked. Raises InputError for rows changed since they were written, for a teacher that brings no
    answer to its end, and for a server that has another model than the one that began.
    """
    folder = folder_of(config)
    if run_of(folder) is None:
        _write(config, _files(config), folder)
    require(folder)
    rows = {"train_data": folder / "rows_train.jsonl", "val_data": None}  # that one lies beside it
    return config.model_copy(update={"training": config.training.model_copy(update=rows)})


def folder_of(config: Config) -> Path:
    """Where the teacher's answers lie, or will lie: named by all that its words depend on."""
    settings = config.distillation
    asked = [weights_identity(settings.teacher_model), *map(sha256, _files(config).values())]
    told = [settings.teacher_quantization, settings.answer_tokens, config.training.max_length]
    key = hashlib.sha256(json.dumps([asked, told]).encode("ascii")).hexdigest()[:16]
    return settings.cache_dir / f"answers-{key}"


def _files(config: Config) -> dict[str, Path]:
    train = config.training.train_data
    validation = validation_file(config.training)
    return {"train": train} | ({"validation": validation} if validation else {})


class LoadedTeacher:
    """A model folder or a GGUF file, loaded here, as it writes answers in batches.

    It is the same as in an earlier run: what was kept is named by its weights.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.name = config, config.distillation.teacher_model
        kept_as = {"quantization": config.distillation.teacher_quantization}
        numbers = config.model.model_copy(update=kept_as)
        limit = config.training.max_length + config.distillation.answer_tokens
        self.engine = open_engine(Candidate("teacher", self.name), numbers, limit)

    @property
    def facts(self) -> dict[str, str | int]:
        return file_facts(Path(self.name)) if is_gguf(self.name) else {}

    def answers(
        self, questions: Sequence[Question], known: RowNumbers
    ) -> Iterator[tuple[int, Generation]]:
        """(row, answer) of each question that is not known yet."""
        tokenizer, longest = self.engine.tokenizer, self.config.training.max_length
        own = tokenizer.chat_template
        template = own or prompts.template_of(self.config.model.prompt_template, tokenizer)
        asked = [encode_prompt(tokenizer, one.messages, template, longest) for one in questions]
        decoding = Decoding(self.config.distillation.answer_tokens)
        return self.engine.generate(asked, decoding, known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


Teacher = LoadedTeacher | ServedTeacher


def _write(config: Config, files: dict[str, Path], folder: Path) -> None:
    teacher = config.distillation.teacher_model
    kept, noted = (folder.with_name(f"{folder.name}.{end}") for end in ("kept.jsonl", "model.json"))
    rows = {split: read_rows(file) for split, file in files.items()}
    with stage_folder("teacher_answers", folder, config, inputs=[teacher, *files.values()]) as one:
        predictions = {
            split: Predictions(kept, [Question.of(row) for row in some])
            for split, some in rows.items()
        }
        with _opened(config, noted, list(predictions.values())) as asked:
            one.metrics.update(asked.facts)
            for split, some in rows.items():
                _write_split(asked, config, split, some, one, predictions[split])
    for file in (kept, noted):
        file.unlink(missing_ok=True)


def _opened(config: Config, noted: Path, kept: Sequence[Predictions]) -> Teacher:
    settings = config.distillation
    if not settings.teacher_model.startswith(ELSEWHERE):
        return LoadedTeacher(config)
    known = [pair for one in kept for pair in one.answered()]
    return ServedTeacher(settings.teacher_model, noted, settings.answer_tokens, known)


def _write_split(
    teacher: Teacher,
    config: Config,
    split: str,
    rows: Sequence[CanonicalRow],
    stage: Stage,
    kept: Predictions,
) -> None:
    _log.info("teacher: writing answers to %d prompts of %s", len(rows), split)
    said = kept.complete(Generation, partial(teacher.answers, kept.questions))
    pairs = zip(rows, said, strict=True)
    taught = [_taught(row, one.text) for row, one in pairs if one.stopped and one.text]
    _log.info("teacher: %d of %d answers came to their end", len(taught), len(rows))
    if not taught:
        raise InputError(
            f"{near(config.distillation.teacher_model)}: none of {len(rows)} answers can be used",
            f"none came to its end within {config.distillation.answer_tokens} tokens",
            "raise --answer-tokens, or choose a teacher that was trained on such conversations",
        )
    with (stage.folder / f"rows_{split}.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in taught)
    stage.metrics.update({f"{split}_rows": len(taught), f"{split}_asked": len(rows)})


def _taught(row: CanonicalRow, answer: str) -> dict[str, Any]:
    """The row with the teacher's answer as its last, and none of what was said of the old one."""
    messages = [*row["messages"][:-1], {"role": "assistant", "content": answer}]
    kept = {name: value for name, value in row.items() if name not in ("references", "extract")}
    changed = {"output": answer} if "output" in row else {}
    return kept | changed | {"messages": without_special_tokens(messages)}
