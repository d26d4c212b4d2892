"""Where a teacher is, and so what it can be asked for.

    folder, Hub id   every probability                       cached, online, sequence
    GGUF file        the likeliest tokens, by llama.cpp      cached, sequence
                     answers, where its tokens are others    sequence
    server, Ollama   answers                                 sequence

`distillation.mode` is cached as it comes, and nobody's choice then: what a teacher cannot do is
left for what it can, with a word. A mode that was asked for is refused.
"""

import logging
from pathlib import Path

from slimtune.artifacts import run_of
from slimtune.config import Config
from slimtune.config.fields import ELSEWHERE
from slimtune.console import near
from slimtune.errors import InputError, ResourceError, SettingsError
from slimtune.models.gguf_header import is_gguf
from slimtune.models.ollama_store import is_ollama
from slimtune.training import gguf_teacher, served_teacher, written_answers
from slimtune.training.shared_vocabulary import OtherVocabulary, ids_in_teacher

_log = logging.getLogger(__name__)


def with_mode(config: Config, student: str) -> Config:
    """The settings with the mode in which this teacher can teach `student`.

    A server is named in full, by its model too; where no Ollama answers, the file of its store is
    the teacher, which is said. Raises what finding a server raises, SettingsError for a mode that
    was asked for and cannot be.
    """
    teacher = config.distillation.teacher_model
    if teacher.startswith(ELSEWHERE):
        teacher = _found(config)
        config = _with(config, teacher_model=teacher)
    if teacher.startswith(ELSEWHERE):
        return _answers_only(config, "a server writes answers and lends no probabilities")
    if not is_gguf(teacher) or config.distillation.mode == "sequence":
        return config
    try:
        ids_in_teacher(teacher, student)
    except OtherVocabulary as other:
        return _answers_only(config, f"its vocabulary is another: {other.why}")
    return config


def _found(config: Config) -> str:
    """The reference of a server's model, in full; answers that it has written need no server."""
    named = config.distillation.teacher_model
    written = _written(config, named)
    try:
        found = served_teacher.found(named)
    except (InputError, ResourceError) as gone:
        if written is None:
            raise
        _log.info("%s (%s): its answers are cached already", gone.what, gone.why)
        return named
    if found.kind != "server":
        return named if written else found.reference
    if folder := _written(config, found.reference):
        served_teacher.require_same(found, folder)
    return found.reference


def _written(config: Config, teacher: str) -> Path | None:
    """The folder of the answers that this teacher has written to the rows; None without."""
    if not config.training.train_data.is_file():
        return None
    folder = written_answers.folder_of(_with(config, teacher_model=teacher))
    return folder if run_of(folder) else None


def _answers_only(config: Config, why: str) -> Config:
    settings, name = config.distillation, near(config.distillation.teacher_model)
    if settings.mode == "sequence":
        return config
    if "distillation.mode" in config.options.flags:
        cure = "leave --mode out, or write --mode sequence: the student learns from its answers"
        if is_ollama(settings.teacher_model):
            cure += "; or name the model's .gguf file, which has probabilities"
        kind = SettingsError if settings.teacher_model.startswith(ELSEWHERE) else InputError
        raise kind(f"{name}: no teacher for --mode {settings.mode}", why, cure)
    _log.info("teacher %s: %s; the student learns from its answers (--mode sequence)", name, why)
    return _with(config, mode="sequence")


def _with(config: Config, **changes: str) -> Config:
    changed = config.distillation.model_copy(update=changes)
    return config.model_copy(update={"distillation": changed})


def facts(config: Config) -> dict[str, str | int]:
    """Which teacher it was, for the records, where no folder's own record says so.

    Of answers it is what was noted as they were written.
    """
    teacher = config.distillation.teacher_model
    if config.distillation.mode == "sequence":
        run = run_of(config.training.train_data.parent)
        told = run["metrics"] if run else {}
        return {name: told[name] for name in told if name.startswith("teacher_")}
    return gguf_teacher.file_facts(Path(teacher)) if is_gguf(teacher) else {}
