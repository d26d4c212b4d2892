"""Renames that wait for whoever has the file open: on Windows nothing in use can be moved.

There a folder cannot be renamed while a program has one file below it open or stands in it, and a
file not replaced: a virus scanner, the preview of Explorer, a spreadsheet that shows the table.
Elsewhere a rename takes no notice of them, and nothing here waits.
"""

import os
import time
from pathlib import Path

import psutil

from slimtune.console import near
from slimtune.errors import ResourceError

_IN_USE = {5, 32, 33}  # access denied, sharing violation, lock violation: winerror.h
_PATIENCE = 5.0  # seconds: a scanner is done with a new file before that
_PACE = 0.1
_CLOSE = "close it, and run the command again"


def move(source: Path, target: Path, cure: str = _CLOSE) -> None:
    """`os.replace`, tried for some seconds where one of the two is in use.

    Raises ResourceError that says who has it, as far as the system tells, and the `cure`.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if getattr(error, "winerror", None) not in _IN_USE:  # Unix has no such number
                raise
            if time.monotonic() > end:
                raise _in_use(source, target, cure) from error
        time.sleep(_PACE)


def _in_use(source: Path, target: Path, cure: str) -> ResourceError:
    for path in (target, source):
        if user := _user_of(path):
            return ResourceError(
                f"{near(path)}: in use, so that it can be neither moved nor replaced", user, cure
            )
    return ResourceError(
        f"{near(source)}: cannot be renamed to {near(target)}",
        "most often a program has it or a file in it open: Explorer, an editor, a spreadsheet, a "
        "virus scanner, or a terminal that stands in it",
        cure,
    )


def _user_of(path: Path) -> str | None:
    """The first process that has the file, or one below the folder, open, in words."""
    place = path.resolve()
    for process in psutil.process_iter(["name"]):
        try:
            files = [file.path for file in process.open_files()]
            inside = Path(process.cwd()).is_relative_to(place)
        except (psutil.Error, OSError):  # another user's, or gone by now
            continue
        found = next((file for file in files if Path(file).is_relative_to(place)), None)
        if found or inside:
            what = f"has {near(found)} open" if found else "stands in it"
            return f"process {process.pid} ({process.info['name']}) {what}"
    return None
