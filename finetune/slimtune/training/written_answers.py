"""A teacher that writes: its own answers to the prompts of prepared rows, for a student to learn.

Sequence-level distillation (Kim and Rush, arXiv:1606.07947): nothing but text goes from one to the
other, so the two may have different tokenizers. The rows are a finished stage folder, named by a
hash of everything its answers depend on; a stopped run goes on with the answers it has.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from slimtune import prompts
from slimtune.artifacts import Stage, require, run_of, sha256, stage_folder
from slimtune.config import Config
from slimtune.console import near
from slimtune.data.rows import CanonicalRow, beside, read_rows
from slimtune.data.turns import without_special_tokens
from slimtune.errors import InputError
from slimtune.inference.answers import Candidate, Generation, Question
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import Engine, open_engine
from slimtune.inference.kept_answers import Predictions
from slimtune.models.folders import weights_identity
from slimtune.prompts import encode_prompt

_log = logging.getLogger(__name__)


def answered(config: Config) -> Config:
    """The settings with rows whose last answers the teacher wrote in place of the prepared rows.

    It is asked greedily, in batches, with its own tokenizer and template, and only for what no
    earlier run asked. Raises InputError for rows changed since they were written, and for a teacher
    that brings no answer to its end.
    """
    train = config.training.train_data
    validation = config.training.val_data or beside(train, "validation")
    files = {"train": train} | ({"validation": validation} if validation else {})
    folder = config.distillation.cache_dir / f"answers-{_key(config, files)}"
    if run_of(folder) is None:
        _write(config, files, folder)
    require(folder)
    rows = {"train_data": folder / "rows_train.jsonl", "val_data": None}  # that one lies beside it
    return config.model_copy(update={"training": config.training.model_copy(update=rows)})


def _key(config: Config, files: dict[str, Path]) -> str:
    """Hash of everything that the teacher's words depend on."""
    settings = config.distillation
    asked = [weights_identity(settings.teacher_model), *map(sha256, files.values())]
    told = [settings.teacher_quantization, settings.answer_tokens, config.training.max_length]
    return hashlib.sha256(json.dumps([asked, told]).encode("ascii")).hexdigest()[:16]


def _write(config: Config, files: dict[str, Path], folder: Path) -> None:
    teacher = config.distillation.teacher_model
    kept_as = {"quantization": config.distillation.teacher_quantization}
    numbers = config.model.model_copy(update=kept_as)
    limit = config.training.max_length + config.distillation.answer_tokens
    kept = folder.with_name(f"{folder.name}.kept.jsonl")
    with stage_folder("teacher_answers", folder, config, inputs=[teacher, *files.values()]) as one:
        engine = open_engine(Candidate("teacher", teacher), numbers, limit)
        try:
            for split, file in files.items():
                _write_split(engine, config, split, read_rows(file), one, kept)
        finally:
            engine.close()
    kept.unlink(missing_ok=True)


def _write_split(
    engine: Engine,
    config: Config,
    split: str,
    rows: Sequence[CanonicalRow],
    stage: Stage,
    kept: Path,
) -> None:
    own = engine.tokenizer.chat_template
    template = own or prompts.template_of(config.model.prompt_template, engine.tokenizer)
    questions = [Question.of(row) for row in rows]
    asked = [
        encode_prompt(engine.tokenizer, one.messages, template, config.training.max_length)
        for one in questions
    ]
    _log.info("teacher: writing answers to %d prompts of %s", len(rows), split)
    ask = partial(engine.generate, asked, Decoding(config.distillation.answer_tokens))
    said = Predictions(kept, questions).complete(Generation, ask)
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
