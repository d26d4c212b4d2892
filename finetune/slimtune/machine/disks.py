"""How much room there is where something is to be written, and whether it is enough.

    require_space(output, plan.bytes, "the weights need them")

Asked before the first byte: a disk that fills up after an hour costs the hour.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from slimtune.console import near, size
from slimtune.errors import ResourceError


def existing(path: Path) -> Path:
    """The nearest of a path and the folders above it that is there."""
    path = path.absolute()
    return next((one for one in (path, *path.parents) if os.path.exists(one)), Path.cwd())


def free_bytes(path: Path) -> int:
    """What is free on the disk where `path` is or would be."""
    return shutil.disk_usage(existing(path)).free


def read_speed(file: Path, most: int = 256 << 20) -> float:
    """Bytes a second in which `file` comes from its disk, by its first `most` bytes.

    Linux is asked to forget them first; another system may say how fast its cache is.
    """
    size = min(most, file.stat().st_size)
    room = memoryview(bytearray(4 << 20))
    with file.open("rb", buffering=0) as handle:
        if sys.platform == "linux":
            os.posix_fadvise(handle.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        started, left = time.perf_counter(), size
        while left > 0 and (got := handle.readinto(room)):
            left -= got
        return size / max(time.perf_counter() - started, 1e-9)


def require_space(output: Path, needed: float, why: str) -> None:
    """ResourceError unless `needed` bytes are free where `output` is or would be."""
    free = free_bytes(output)
    if free < needed:
        raise ResourceError(
            f"{near(output)}: {size(needed)} needed, {size(free)} free",
            why,
            f"free {size(needed - free)} there, or choose an output on another disk",
        )
