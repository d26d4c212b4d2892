"""What goes wrong, in words: errors with their exit codes, and the file that one is about.

Every error the user can cause is a `SlimTuneError`: three lines (what and where, why, what to do)
and an exit code of its own; anything else is a bug of ours and exits 1.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

from slimtune.masking import masked


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

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another whatever a subclass asks to be made of: one that could not be
        made again there counted as a process that was ended from outside."""
        return _made_again, (type(self), self.args, vars(self))

    def __str__(self) -> str:
        return masked(f"{self.what}\n  why: {self.why}\n  do:  {self.cure}")


def _made_again(kind: type[SlimTuneError], args: tuple[str, ...], told: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)  # which keeps `args`, as every exception does
    vars(error).update(told)
    return error


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


KINDS = {
    ExitCode.BUG: "a fault of SlimTune",
    ExitCode.SETTINGS: "settings",
    ExitCode.INPUT: "data or model",
    ExitCode.RESOURCES: "memory, disk, device or program",
    ExitCode.QUALITY: "the result failed its own check",
    ExitCode.LOCKED: "another run writes it",
}


_PLACE = "at "  # how the note begins that `naming` leaves in an error


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Within, an error that names no file will be told with this one, unless one inside named it.

    What libraries in Rust and C++ raise, and a write that fails, name none.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, SlimTuneError) and place_of(error) is None:
            error.add_note(f"{_PLACE}{place}")
        raise


def place_of(error: BaseException) -> str | None:
    """The file or folder that an error names, by itself or within `naming`."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename)
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][1])  # (source, target, why) of each that failed
    for text in getattr(error, "__notes__", ()):
        if text.startswith(_PLACE):
            return text.removeprefix(_PLACE)
    return None
