"""One writer an output: a lock that the system releases whatever ends the run, and who holds it.

The lock is the package filelock's: flock on Unix, LockFileEx on Windows, and where a system or a
file system has neither, a file that names a process. What is in the lock's file is that package's
own affair, so the words for whoever comes second stand in a file of their own beside it. Both are
dotfiles: `.NAME.lock`, which stays, and `.NAME.holder.lock`, which goes with its run.

Nothing foreign is written to: no link is followed, and no file that was there is emptied.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimtune.console import near
from slimtune.errors import LockedError, SettingsError, naming

with warnings.catch_warnings():
    # Where flock is missing it warns and takes what is left, which is as good on one machine.
    warnings.filterwarnings("ignore", "only soft file lock is available")
    from filelock import FileLock, Timeout

_HOLDER = "process "  # how the words of a holder begin
_LONGEST = 4096  # characters of them that are read
# What a lock may hold: nothing, filelock's own mark of a process, or words of an earlier SlimTune.
_LOCK = re.compile(r"$|\d+\n|process ")


@contextmanager
def only_writer(output: Path, since: str, command: str) -> Iterator[None]:
    """While it is open no other run can have it for the same output: a folder, file or manifest.

    `since` and `command` are this run's words for the others. Raises LockedError that says who
    holds it, SettingsError where no lock can be, OSError where the system refuses one.
    """
    _make_folder(output.parent)
    file = output.with_name(f".{output.name}.lock")
    holder = output.with_name(f".{output.name}.holder.lock")
    _refuse_foreign(file)
    lock = FileLock(file)
    try:
        with naming(file):
            lock.acquire(blocking=False)
    except Timeout:
        raise LockedError(
            f"{near(output)}: another run is writing it",
            f"held by {_read(holder) or 'an unknown process'}",
            "wait for it to end, or choose another output",
        ) from None
    try:
        _remove(holder)  # of a run that was killed
        _write(holder, f"{_HOLDER}{os.getpid()} since {since}: {command}")
        yield
    finally:
        _remove(holder)
        lock.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise no_folder(folder) from error


def no_folder(folder: Path) -> SettingsError:
    """What to say where a folder is needed and something else has its name."""
    return SettingsError(
        f"{near(folder)}: no folder, and none can be made there",
        "a file or a broken link has this name, or that of a folder above",
        "move it away, or choose another output",
    )


def _refuse_foreign(file: Path) -> None:
    """Raise SettingsError for a lock that is none: filelock itself refuses links only."""
    if not os.path.lexists(file):
        return
    if file.is_file() and not file.is_symlink():
        try:
            with file.open(encoding="utf-8", errors="replace") as words:
                known = _LOCK.match(words.read(_LONGEST))
        except OSError:  # Windows lets nobody read what another run has locked
            known = True
        if known:
            return
    raise SettingsError(
        f"{near(file)}: no lock of SlimTune's",
        "it is a link, a folder, or a file with other words in it",
        f"delete {near(file)} or move it away, or choose another output",
    )


def _write(holder: Path, words: str) -> None:
    """The words into a new file; what is there already, a link or somebody's file, stays as it is.

    They are a courtesy: a run that cannot leave them is locked all the same.
    """
    with suppress(OSError), holder.open("x", encoding="utf-8", errors="replace") as file:
        file.write(words)


def _read(holder: Path) -> str:
    """The words of a holder, empty where the file is not one of ours."""
    if holder.is_symlink() or not holder.is_file():
        return ""
    try:
        with holder.open(encoding="utf-8", errors="replace") as file:
            words = file.read(_LONGEST).strip()
    except OSError:
        return ""
    return words if words.startswith(_HOLDER) else ""


def _remove(holder: Path) -> None:
    if _read(holder):
        with suppress(OSError):
            holder.unlink()
