"""The rows that models were trained on, as their own records name them, whatever config.yaml says.

config.yaml names the rows of the next training. What is measured, calibrated, proven or tested on
rows means those of the model at hand, which may be another project's.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtune.artifacts import ancestors, run_of
from slimtune.config import Config
from slimtune.console import near
from slimtune.data.rows import CanonicalRow, beside, read_rows

_log = logging.getLogger("slimtune")

_LEARNING = ("train_lora", "knowledge_distillation", "teacher_answers")


@dataclass(frozen=True)
class Learned:
    """Files of training rows, the nearest first; `gone` is what records name and nobody can read.

    That is anything of ours that is not there any more, or was written again since.
    """

    files: tuple[Path, ...]
    gone: tuple[str, ...]

    def rows(self) -> list[CanonicalRow]:
        return [row for file in self.files for row in read_rows(file)]


NOTHING = Learned((), ())


def learned_by(*paths: Path) -> Learned:
    """What `paths`, and all that they were made from, were trained on."""
    files: dict[Path, None] = {}
    gone: dict[str, None] = {}
    for run in ancestors(*paths):
        named = _training_file(run)
        for one in run["inputs"]:
            is_rows = one["path"] == named
            if not _is_as_it_was(one, is_rows):
                gone[one["path"]] = None
            elif is_rows:
                files[Path(one["path"])] = None
    return Learned(tuple(files), tuple(gone))


def with_rows_of(config: Config, *models: Path | str | None) -> Config:
    """The settings with the rows that `models` were trained on as training.train_data.

    --train-data on the command line goes before; models without a record leave the settings as they
    are. Rows with test rows beside them go before rows without, such as a teacher's answers.
    """
    if "training.train_data" in config.options.flags:
        return config
    files = learned_by(*(Path(one) for one in models if one)).files
    file = next((one for one in files if beside(one, "test")), next(iter(files), None))
    if file is None or file == config.training.train_data:
        return config
    told = (near(file), near(config.training.train_data))
    _log.info("rows: %s, which the model was trained on, not training.train_data (%s)", *told)
    training = config.training.model_copy(update={"train_data": file})
    return config.model_copy(update={"training": training})


def _training_file(run: dict[str, Any]) -> str | None:
    learning = run["stage"] in _LEARNING
    return run["settings"].get("training", {}).get("train_data") if learning else None


def _is_as_it_was(one: dict[str, Any], is_rows: bool) -> bool:
    path = Path(one["path"])
    if one.get("run_id") is None:  # not ours: rows by hand, or a base that came from elsewhere
        return not is_rows or (path.is_file() and path.stat().st_size > 0)
    now = run_of(path) if path.exists() else None
    return now is not None and now["run_id"] == one["run_id"]
