"""What the system refuses, in our words: files, disks, memory, processes, libraries.

    refusal_of(error, read=[...])    # the SlimTuneError to say, or None: then it is a bug of ours

Python and most libraries tell an errno. Rust and C++ tell a sentence, sometimes with the errno in
it ("os error 28", "[Errno 13]", torch's "Too many open files (24)"), and pyo3's panics are no
`Exception`s. What is refused while an input is read is the input's fault (exit 3), all else the
environment's (exit 4).
"""

import ctypes
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from slimtune.console import near, size
from slimtune.errors import InputError, ResourceError, SlimTuneError, place_of
from slimtune.machine.disks import free_bytes
from slimtune.packages import not_loadable

try:
    import resource
except ImportError:  # Windows
    resource = None

_RETRY = "run the same command again"
_ELSEWHERE = "move it away, or choose another path"
_RIGHTS = "see who may with `ls -ld`, change that with chmod or chown, or choose another path"
# errno -> why it was refused, and what to do.
_WORDS: dict[int, tuple[str, str]] = {
    errno.EACCES: ("permission denied, or another program has it open", _RIGHTS),
    errno.EPERM: ("the system does not permit it to this user", _RIGHTS),
    errno.EROFS: ("its file system is read-only", "choose a folder on a disk that can be written"),
    errno.ENOTDIR: ("a file stands where a folder is needed", _ELSEWHERE),
    errno.EISDIR: ("a folder stands where a file is needed", _ELSEWHERE),
    errno.EEXIST: ("something of this name stands there already", _ELSEWHERE),
    errno.ENOTEMPTY: ("a folder that is not empty stands there already", _ELSEWHERE),
    errno.ENOENT: (
        "it is not there, or no longer",
        f"look whether the path is right, and {_RETRY}",
    ),
    errno.ENAMETOOLONG: ("its name, or the path to it, is longer than allowed", "choose a shorter"),
    errno.ELOOP: ("its links lead in a circle", "remove the link, or choose another path"),
    errno.EXDEV: ("it lies on another disk than its folder", "choose a path on one disk"),
    errno.EBUSY: ("the system, or another program, is using it", f"end that, and {_RETRY}"),
    errno.EIO: ("the disk failed, or the network between", f"check the disk, and {_RETRY}"),
    errno.ESTALE: ("its network drive was disconnected", f"connect it again, and {_RETRY}"),
    errno.EPIPE: ("the program that read the output has ended", "let it read to the end"),
}
# What is short on the machine, whatever the file.
_SHORT: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", f"free some space, and {_RETRY}"),
    errno.EDQUOT: ("your quota on this disk is used up", f"delete some files, and {_RETRY}"),
    errno.EFBIG: ("no file may be that large here", f"`ulimit -f unlimited`, and {_RETRY}"),
    errno.EMFILE: ("too many files are open at once", f"`ulimit -n 4096`, and {_RETRY}"),
    errno.ENFILE: ("too many files are open on this machine", f"end other programs, and {_RETRY}"),
    errno.EAGAIN: ("the system starts no more processes or threads", "`ulimit -u` shows how many"),
}
_ERRNO = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)
_STRERROR = re.compile(r": ([^:]+) \((\d{1,3})\)\s*$", re.MULTILINE)  # torch's, which maps weights
_MAPPED = re.compile(r"file <(.+?)>")
_BYTES = re.compile(
    r"(?:allocate|allocation of|size|mmap|need(?:ed)?):? (\d{4,}) ?bytes|of (\d{7,})\b"
)
# The sentences of torch (CPU, CUDA, Windows), oneDNN, C++, Rust, the dynamic loader and glibc.
_MEMORY = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "bad_alloc",
    "bad allocation",
    "memory allocation of",
    "capacity overflow",
    "failed to map segment",
    "paging file is too small",
)
# A write that failed, told without an errno: torch.save's archive, numpy's tofile, C++ streams.
_WRITE = (
    "pytorchstreamwriter failed",
    "unexpected pos",
    "file write failed",
    "requested and",
    "iostream error",
)
_CIRCLE = re.compile("Symlink loop from '(.+)'")  # pathlib's, until Python 3.12
_THREADS = ("can't start new thread", "failed to spawn thread")


def refusal_of(
    error: BaseException, read: Sequence[Path] = (), cure: str = "take a smaller model"
) -> SlimTuneError | None:
    """What was refused, why, and the cure; None where nothing says that the system refused it.

    `read` are the inputs of the run; `cure` is what takes less memory in it.
    """
    for one in _causes(error):
        if isinstance(one, SlimTuneError):
            return one
        said = str(one).lower()
        if isinstance(one, MemoryError) or any(words in said for words in _MEMORY):
            return _memory(one, cure)
        if circle := _CIRCLE.match(str(one)):
            return _file(errno.ELOOP, OSError(errno.ELOOP, said, circle[1]), read)
        if any(words in said for words in _THREADS):
            return _file(errno.EAGAIN, one, read)
        code = errno_of(one)
        if code == errno.ENOMEM:
            return _memory(one, cure)
        if code is not None:
            return _file(code, one, read)
        if isinstance(one, OSError | RuntimeError) and any(words in said for words in _WRITE):
            return _unfinished_write(one)
        if isinstance(one, ImportError):
            return not_loadable(one)
        if is_panic(one):
            return _panic(one)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it tells that memory, of the machine or of a device, does not suffice."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _MEMORY)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up: pyo3's PanicException, a BaseException of no module."""
    return type(error).__name__ == "PanicException"


def errno_of(error: BaseException) -> int | None:
    """The errno of an OSError, of shutil's list of them, or of a library's sentence."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return error.errno
    found = _ERRNO.search(str(error))
    if found is None:
        codes = ((words, int(number)) for words, number in _STRERROR.findall(str(error)))
        return next((code for words, code in codes if os.strerror(code) == words), None)
    code = int(found[1] or found[2])
    if found[2] and sys.platform == "win32":  # Rust tells Windows' own number there
        return ctypes.WinError(code).errno
    return code


def _causes(error: BaseException) -> Iterator[BaseException]:
    """It, and what it was raised from; not what it was merely raised beside."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _file(code: int, error: BaseException, read: Sequence[Path]) -> SlimTuneError:
    place = _opened(error) or place_of(error) or _mapped(error)
    if code == errno.ENOENT and _is_nowhere():
        return ResourceError(
            "the working directory: it was removed, or moved away",
            "paths are told and looked for from there",
            f"cd to a folder that is there, and {_RETRY}",
        )
    what = near(place) if place else "a file, or what reads the output"
    if code in _SHORT:
        why, cure = _SHORT[code]
        have = _have(code, place)
        return ResourceError(f"{what}: {why}{have}", _told(error, code), cure)
    why, cure = _WORDS.get(code, (_told(error, code), f"see what `{what}` is, and {_RETRY}"))
    if place and _is_read(Path(place), read):
        return InputError(f"{what}: cannot be read", why, cure)
    return ResourceError(f"{what}: the system refused to read or write it", why, cure)


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _opened(error: BaseException) -> str | None:
    """The file that was being read or written: the innermost that is open in the calls that failed.

    A read that fails names no file, and every reader would have to; a call of open does.
    """
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    calls = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(calls):
        for value in frame.f_locals.values():
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
            if isinstance(name, str | os.PathLike):
                return os.fspath(name)
    return None


def _mapped(error: BaseException) -> str | None:
    """The file that torch could not map."""
    found = _MAPPED.search(str(error))
    return found[1] if found else None


def _have(code: int, place: str | None) -> str:
    """How much there is of what is short, where that can be said."""
    if code in (errno.ENOSPC, errno.EDQUOT) and place:
        return f" ({size(free_bytes(Path(place)))} free)"
    if code == errno.EMFILE and resource:
        return f" (the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
    if code == errno.EFBIG and resource:
        return f" (the limit is {size(resource.getrlimit(resource.RLIMIT_FSIZE)[0])})"
    return ""


def _unfinished_write(error: BaseException) -> ResourceError:
    """A library wrote less than it had, and kept the reason to itself."""
    place = place_of(error)
    free = f", {size(free_bytes(Path(place)))} are free" if place else ""
    return ResourceError(
        f"{near(place) if place else 'a file'}: could not be written to its end",
        f"most often the disk is full{free}, or `ulimit -f` sets a limit ({_first_line(error)})",
        f"free some space, and {_RETRY}",
    )


def _told(error: BaseException, code: int) -> str:
    """The system's own words, without number and path, which stand elsewhere."""
    return os.strerror(code) if isinstance(error, OSError) else _first_line(error)


def _is_read(place: Path, read: Sequence[Path]) -> bool:
    """Whether it lies in an input: by its name, by its folder's links or by its own.

    Not by `resolve`, which makes an error of a circle of links.
    """
    in_folder = os.path.join(os.path.realpath(place.parent), place.name)
    names = {os.path.abspath(place), in_folder, os.path.realpath(place)}
    roots = {of(one) for one in read for of in (os.path.abspath, os.path.realpath)}
    return any(Path(name).is_relative_to(root) for name in names for root in roots)


def _memory(error: BaseException, cure: str) -> ResourceError:
    found = _BYTES.search(str(error))
    asked = f"{size(float(found[1] or found[2]))} more were asked for, " if found else ""
    told = _first_line(error) or "the system refused an allocation"
    return ResourceError(
        "out of memory", f"{told} ({asked}{_free_memory()})", f"{cure}; --dry-run estimates it"
    )


def _free_memory() -> str:
    """How much there is; where not even that can be asked any more, so much is said."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    try:
        free = min(psutil.virtual_memory().available, limit if limit > 0 else sys.maxsize)
    except (MemoryError, OSError):
        return "hardly any is left"
    return f"this process may have {size(limit)}" if free == limit else f"{size(free)} are free"


def _panic(error: BaseException) -> ResourceError:
    return ResourceError(
        "a library written in Rust gave up",
        _first_line(error),
        "read what it says above; if an input is damaged, take it from its source again",
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else ""
