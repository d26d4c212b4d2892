"""One writer an output: a lock that the system releases whatever ends the run, and who holds it.

The lock is the package filelock's: flock on Unix, LockFileEx on Windows, and where a system or a
file system has neither, a file that names a process. What is in the lock's file is that package's
own affair, so the words for whoever comes second stand in a file of their own beside it. Both are
dotfiles: `.NAME.lock`, which stays, and `.NAME.holder.lock`, which goes with its run.
"""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimtune.console import LockedError, SettingsError, near

with warnings.catch_warnings():
    # Where flock is missing it warns and takes what is left, which is as good on one machine.
    warnings.filterwarnings("ignore", "only soft file lock is available")
    from filelock import FileLock, Timeout

_OURS = "process "  # how the words of a holder begin
_LONGEST = 4096  # bytes of them that are read


@contextmanager
def only_writer(output: Path, since: str, command: str) -> Iterator[None]:
    """While it is open no other run can have it for the same output: a folder, file or manifest.

    Raises LockedError that says who holds it: `since` and `command` are this run's words for the
    others. Raises SettingsError where the output cannot be locked.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    holder = output.with_name(f".{output.name}.holder.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LockedError(
            f"{near(output)}: another run is writing it",
            f"held by {_read(holder) or 'an unknown process'}",
            "wait for it to end, or choose another output",
        ) from None
    except OSError as error:
        raise _cannot_be_locked(lock.lock_file, error) from error
    try:
        _remove(holder)  # of a run that was killed
        _write(holder, f"{_OURS}{os.getpid()} since {since}: {command}")
        yield
    finally:
        _remove(holder)
        lock.release()


def _cannot_be_locked(file: str, error: OSError) -> Exception:
    if error.errno == errno.ENOSPC:
        return error  # script.py has words for a full disk
    link = Path(file).is_symlink()
    return SettingsError(
        f"{near(file)}: cannot be locked",
        "it is a link, and what it points to is not ours" if link else error.strerror,
        "remove it, or choose another output" if link else "choose another output",
    )


def _write(holder: Path, words: str) -> None:
    """The words into a new file; what is there already, a link or somebody's file, stays as it is.

    They are a courtesy: a run that cannot leave them is locked all the same.
    """
    with suppress(OSError), holder.open("x", encoding="utf-8") as file:
        file.write(words)


def _read(holder: Path) -> str:
    """The words of a holder, empty where the file is not one of ours."""
    try:
        if holder.is_symlink():
            return ""
        with holder.open(encoding="utf-8", errors="replace") as file:
            words = file.read(_LONGEST).strip()
    except OSError:
        return ""
    return words if words.startswith(_OURS) else ""


def _remove(holder: Path) -> None:
    if _read(holder):
        with suppress(OSError):
            holder.unlink()
