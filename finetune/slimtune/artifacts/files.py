"""Files read and written in one way: whole or not at all, and checked before they are believed.

    with replacing(file) as partial:       # NAME.partial beside it -> fsync -> rename
        write to partial
    files = seal(folder)                   # {name: {"sha256", "bytes"}}, flushed to the disk
    broken(folder, files)                  # the first file that is no longer so

Names that a file from outside mentions are plain names inside its own folder or nothing at all.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from shlex import quote
from typing import Any

from slimtune.console import near
from slimtune.errors import InputError, SettingsError, naming
from slimtune.machine.moving import move
from slimtune.masking import masked

Sealed = dict[str, dict[str, Any]]  # name below the folder -> {"sha256": hexadecimal, "bytes": int}

COPY_AGAIN = "copy it again from where it came from"
_POINTER = b"version https://git-lfs"  # github.com/git-lfs/git-lfs/blob/main/docs/spec.md


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; what stands there at the end becomes `file`, all of it or nothing.

    The name holds the process's number: two processes may write the same file at once. Raises
    SettingsError for a link.
    """
    refuse_link(file)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)  # through a link, another file would be written
    try:
        with naming(file):
            yield partial
            flush(partial)
            move(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def refuse_link(file: Path) -> None:
    """SettingsError where a link has the name of a file to be written: it stays one."""
    if file.is_symlink():
        raise SettingsError(
            f"{near(file)}: its place is taken",
            f"a link stands there, to {os.readlink(file)}: it would be replaced, or what it leads "
            "to written over",
            f"move {near(file)} away, or choose another output",
        )


def write_text(file: Path, text: str) -> None:
    """UTF-8 with `\\n` at line ends on every system. Half a character, which UTF-8 cannot hold, is
    written as its escape."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_page(file: Path, text: str) -> None:
    """`write_text` for what people read and pass on: without secrets."""
    write_text(file, masked(text))


def write_json(file: Path, value: Any) -> None:
    """Indented JSON that people read too; NaN and infinity, which JSON has not, become null."""
    content = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(file, content + "\n")


def json_line(value: Any) -> str:
    """One line of a JSONL file, line end included; NaN and infinity become null here too."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def read_json(file: Path, cure: str = COPY_AGAIN, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file, {} where an `optional` one is missing.

    Raises InputError naming the file, what is wrong with it, and the cure.
    """
    if optional and not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{near(file)}: missing", f"looked for {file}", cure) from None
    except (ValueError, RecursionError) as error:  # no UTF-8 is a ValueError as well
        require_fetched(file)
        raise InputError(f"{near(file)}: not valid JSON", _first_line(error), cure) from None
    if not isinstance(value, dict):
        found = f"a {type(value).__name__} where names with values are needed"
        raise InputError(f"{near(file)}: not what it should hold", found, cure)
    return value


def require_fetched(file: Path) -> None:
    """InputError for a Git LFS pointer: three lines of text in place of data, weights or a
    tokenizer, where a repository was cloned without its large files."""
    with file.open("rb") as handle:
        if handle.read(len(_POINTER)) != _POINTER:
            return
    raise InputError(
        f"{near(file)}: a Git LFS pointer, not the file itself",
        f"git left {file.stat().st_size} bytes of text that name it in its place",
        f"Git LFS pointer: git lfs pull (in {near(file.parent)}), or download the file itself",
    )


def text_lines(file: Path, setting: str, cure: str) -> list[str]:
    """The lines with something in them of a plain text in UTF-8 that a setting names; `cure` is for
    one that is not there. Raises InputError for that and for another encoding."""
    if not file.is_file():
        raise InputError(f"{near(file)}: not there", f"{setting} names it", cure)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{near(file)}: byte {error.start:,} is not UTF-8",
            f"{setting} names it, and plain text is read as UTF-8",
            f"save it as UTF-8: iconv -f LATIN1 -t UTF-8 {quote(near(file))} > utf8.txt",
        ) from error
    return [line for line in text.splitlines() if line.strip()]


def json_or_none(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file that may as well be missing or broken: then None."""
    try:
        return read_json(file)
    except (InputError, OSError):
        return None


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(folder: Path, *, without: str) -> Sealed:
    """Every file under `folder` but `without` (the manifest's own name), flushed to the disk.

    They can then be read by whoever may read the folder: safetensors 0.8 writes for the owner
    alone, and a server that is another user could not load what was trained.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != without]
    usual = folder.stat().st_mode & 0o666
    for file in files:
        flush(file)
        if file.stat().st_mode & 0o777 == 0o600:
            file.chmod(usual)
    return {
        file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in files
    }


def broken(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of the sealed `files` that is missing or no longer the same; None if all are.

    One that lies elsewhere is never looked at: it counts as missing.
    """
    for name, sealed in files.items():
        if not is_plain(name) or not as_sealed(folder / name, sealed):
            return name
    return None


def as_sealed(file: Path, sealed: Mapping[str, Any]) -> bool:
    """Whether a file is there with the bytes that its manifest tells of."""
    if not file.is_file() or file.stat().st_size != sealed["bytes"]:
        return False
    return sha256(file) == sealed["sha256"]


def are_sealed(files: object) -> bool:
    """Whether this is what `seal` returns: plain names, each with a sum and a size."""
    if not isinstance(files, dict):
        return False
    return all(is_plain(name) and _is_sum(entry) for name, entry in files.items())


def _is_sum(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int)


def is_plain(name: object) -> bool:
    """Whether a name from outside is one that stays below its folder, on every system.

    No `..`, no root, no drive, no backslash, nothing that a terminal obeys: `../x`, `/x`, `C:x` and
    `a\\..\\x` are none.
    """
    if not isinstance(name, str) or "\\" in name or PureWindowsPath(name).anchor:
        return False
    # Windows takes ". ." and "..." for names of dots: it drops dots and spaces at the end.
    parts_are_names = all(part.strip(" .") for part in name.split("/"))
    return parts_are_names and not any(unicodedata.category(char) == "Cc" for char in name)


def inside(folder: Path, name: object, told_by: str) -> Path:
    """`folder / name`; InputError for a name that leads elsewhere. `told_by` is the file it is in.

    Links are followed by whoever opens the file: the Hub's own cache is made of them.
    """
    if not is_plain(name):
        raise InputError(
            f"{near(folder / told_by)}: names the file {name!r}",
            "what comes with a folder may only speak of files inside that folder",
            "take the folder from its source again, or do not trust it",
        )
    return folder / str(name)


def flush(path: Path) -> None:
    """The bytes of a file, or the names in a folder, onto the disk."""
    if path.is_file():
        # Windows flushes only what may be written; elsewhere a file may be read-only by now.
        with path.open("r+b" if sys.platform == "win32" else "rb") as handle:
            os.fsync(handle.fileno())
    elif sys.platform != "win32":  # which has no way to flush a folder
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def clear(path: Path) -> None:
    """Nothing under this name any more; of a link only the link goes, never what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
