"""Words to the user: errors with exit codes, progress, and the closing "wrote ... / next: ..." lines.

Results go to stdout, progress and log to stderr. Every error the user can cause is a `SlimTuneError`: three lines
(what and where, why, what to do) and an exit code of its own; anything else is a bug of ours and exits 1.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    BUG = 1
    SETTINGS = 2
    INPUT = 3
    RESOURCES = 4
    QUALITY = 5
    LOCKED = 6
    INTERRUPTED = 130


class SlimTuneError(Exception):
    """A failure the user can act on: `what` (and where), `why`, and the `cure`, one line each."""

    exit_code = ExitCode.BUG

    def __init__(self, what: str, why: str, cure: str) -> None:
        super().__init__(what, why, cure)
        self.what, self.why, self.cure = what, why, cure

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  do:  {self.cure}"


class SettingsError(SlimTuneError):
    """A setting is unknown, malformed, or contradicts another (exit 2)."""

    exit_code = ExitCode.SETTINGS


class InputError(SlimTuneError):
    """Data or a model is missing, unreadable, or not what the stage needs (exit 3)."""

    exit_code = ExitCode.INPUT


class ResourceError(SlimTuneError):
    """Memory, disk, a device or a program is missing (exit 4)."""

    exit_code = ExitCode.RESOURCES


class QualityError(SlimTuneError):
    """The stage ran and its result failed its own check (exit 5)."""

    exit_code = ExitCode.QUALITY


class LockedError(SlimTuneError):
    """Another run is writing the same output (exit 6)."""

    exit_code = ExitCode.LOCKED
