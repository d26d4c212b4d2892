"""A file system with the rules of Windows, on Linux: what is open is neither moved nor deleted.

    with like_windows() as refused:    # [(what was tried, file), ...]
        run a script

Open is what this process or one of `besides` has a handle on or has mapped into memory, and a
folder is in use where a file below it is. A rename onto a name that is taken fails; `os.replace`
takes the place of a closed file, never that of a folder. From the documents of MoveFileEx,
DeleteFile and RemoveDirectory; nothing here has seen a real Windows.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

SHARING_VIOLATION, ACCESS_DENIED = 32, 5  # winerror.h


class InUseError(PermissionError):
    """As Windows raises it; Linux's own OSError has no `winerror`."""

    def __init__(self, path: str, code: int = SHARING_VIOLATION) -> None:
        words = "The process cannot access the file because it is being used by another process"
        super().__init__(13, words, path)
        self.winerror = code


def opened(process: int | str = "self") -> set[str]:
    """The files that a process has open or mapped; none if it has ended."""
    found: set[str] = set()
    if not Path(f"/proc/{process}/fd").is_dir():
        return found
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.add(os.readlink(link))
        except OSError:  # the handle of this very search
            continue
    for line in Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines():
        found.add("/" + line.partition("/")[2])
    return found


def in_use(path: str, besides: tuple[int, ...]) -> str | None:
    """What is open of a file, or of the folder it is."""
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    below = real.rstrip("/") + "/"
    files = set().union(*map(opened, ("self", *besides)))
    return next((file for file in files if file == real or file.startswith(below)), None)


@contextmanager
def like_windows(*besides: int) -> Iterator[list[tuple[str, str]]]:
    """Within, this process moves and deletes as on Windows; yields what has been refused."""
    refused: list[tuple[str, str]] = []

    def refuse(what: str, path: str, error: OSError) -> None:
        refused.append((what, path))
        raise error

    def checked(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(path: object, *others: object, **options: object) -> None:
            file = os.fspath(path)
            if os.path.lexists(file) and in_use(file, besides):
                refuse(name, file, InUseError(file))
            if others:
                target = os.fspath(others[0])
                there = os.path.lexists(target) and target != file
                if there and (name == "rename" or os.path.isdir(target)):
                    refuse(name, target, FileExistsError(17, "it exists already", target))
                if there and in_use(target, besides):
                    refuse(name, target, InUseError(target, ACCESS_DENIED))
            function(path, *others, **options)

        return call

    names = ("rename", "replace", "unlink", "remove", "rmdir")
    patches = [patch.object(os, name, checked(name, getattr(os, name))) for name in names]
    patches.append(patch.object(shutil, "_use_fd_functions", False))  # handles of folders
    for one in patches:
        one.start()
    try:
        yield refused
    finally:
        for one in patches:
            one.stop()
