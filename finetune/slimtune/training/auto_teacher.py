"""What `auto` means for a teacher and for the plain text beside the rows.

The sample's teacher and text are for students with the sample's vocabulary: another student would
learn garbage from the one and a made-up world from the other. It is taught by the model that it was
pruned from, which its record names, on its rows alone.
"""

import logging
import os
from pathlib import Path
from typing import Any

from slimtune.artifacts import require, run_of
from slimtune.config import Config
from slimtune.console import near
from slimtune.errors import InputError
from slimtune.models.folders import local_folder
from slimtune.models.json_files import read_model_json
from slimtune.models.vocabulary_map import read_map
from slimtune.settings.flags import named
from slimtune.training import teacher_places

_log = logging.getLogger(__name__)


def with_teacher(config: Config, student: str, unpruned: str | None = None) -> Config:
    """The settings with a teacher and a text in place of `auto`, and with the mode in which this
    teacher can teach; each choice is said.

    `unpruned` is the model before pruning where it is known, as in the combined run; else the
    student's record tells. Raises InputError where neither does, or one of the two is not whole.
    """
    require(student)
    settings, chosen = config.distillation, {}
    samples = str(config.sample.models_dir / "teacher")
    teacher = settings.teacher_model
    if teacher == "auto":
        if _speaks_as(student, samples):
            teacher, why = samples, "the sample's teacher has the student's vocabulary"
        else:
            teacher, why = unpruned or _pruned_from(student), "the model before pruning"
        chosen["teacher_model"] = teacher
        _log.info("teacher auto: %s, %s", near(teacher), why)
    if settings.text_data == "auto":
        text = config.sample.output_dir / "sample_text.txt"
        is_sample = Path(teacher) == Path(samples) or _speaks_as(student, samples)
        chosen["text_data"] = text if is_sample else None
        _log.info("text auto: %s", near(text) if is_sample else "none, rows only")
    require(teacher)
    config = config.model_copy(update={"distillation": settings.model_copy(update=chosen)})
    return teacher_places.with_mode(config, student)


def _speaks_as(student: str, samples: str) -> bool:
    """Whether a model has the vocabulary of the sample's teacher, where that is on this machine, or
    what a trim has left of it."""
    whole, folder = _vocabulary(Path(samples)), local_folder(student)
    trimmed = read_map(folder)
    if whole is not None and trimmed:
        number = {old: new for new, old in enumerate(trimmed.kept)}
        whole = {token: number[id] for token, id in whole.items() if id in number}
    return whole is not None and whole == _vocabulary(folder)


def _vocabulary(folder: Path) -> Any:
    file = folder / "tokenizer.json"
    return read_model_json(file).get("model", {}).get("vocab") if file.is_file() else None


def _pruned_from(student: str) -> str:
    """The model that the record of a pruned student says it was cut from."""
    run = run_of(Path(student)) if os.path.isdir(student) else None
    pruned = run is not None and run["stage"] == "model_pruning" and run["inputs"]
    source = run["inputs"][0]["path"] if pruned else None
    if source and os.path.isdir(source):
        return source
    raise InputError(
        f"{near(student)}: who teaches it?",
        f"the model that it was pruned from, {near(source)}, is not there any more"
        if source
        else "it has another vocabulary than the sample's teacher, and no record of being pruned",
        f"name a model with its vocabulary: {named('distillation.teacher_model')} FOLDER",
    )
