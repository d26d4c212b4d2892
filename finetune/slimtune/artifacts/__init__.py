"""Stage folders and files: written whole or not at all, each with the record of how it was made.

Lock -> NAME.partial -> run.json last -> fsync -> rename. `run.json` present and matching <=> the
stage finished. The chain of records is the lineage from which the report is filled.
"""

from slimtune.artifacts.files import sha256
from slimtune.artifacts.reading import require
from slimtune.artifacts.records import ancestors, lineage, run_of, system_prompt_for
from slimtune.artifacts.stages import (
    Stage,
    finish_files,
    not_without_overwrite,
    refuse_finished,
    refuse_finished_files,
    refuse_inputs,
    stage_files,
    stage_folder,
)
from slimtune.artifacts.writable import require_writable

__all__ = [
    "Stage",
    "ancestors",
    "finish_files",
    "lineage",
    "not_without_overwrite",
    "refuse_finished",
    "refuse_finished_files",
    "refuse_inputs",
    "require",
    "require_writable",
    "run_of",
    "sha256",
    "stage_files",
    "stage_folder",
    "system_prompt_for",
]
