"""Weights used where their file lies in the system's cache, with nothing copied. Linux only.

    ask_for(info)    have the system read a weight, and do not wait
    data = at(info)  the weight itself: 2 ms of CPU time for 88 MB whose copy takes 10

Its pages count as memory of this process as long as `data` lives, and are the system's to take back
meanwhile. What is written to it does not reach the file.
"""

import errno
import mmap
import os
import sys
from collections.abc import Iterable

import torch

from slimtune.models.headers import TensorInfo, damaged

_POPULATE_READ = 22  # MADV_POPULATE_READ of linux/mman.h: Python has no name for it


def can_be(weights: Iterable[tuple[TensorInfo, torch.dtype]], device: torch.device) -> bool:
    """Whether weights can be used as they lie in their files, each in the type beside it.

    A file says where a weight begins, and products may differ by that. Those of bfloat16 do not:
    oneDNN packs what it multiplies.
    """
    if sys.platform != "linux" or device.type != "cpu":
        return False
    return all(
        info.dtype == dtype == torch.bfloat16 and info.offset % dtype.itemsize == 0
        for info, dtype in weights
    )


def ask_for(info: TensorInfo) -> None:
    """Have the system read a weight into its cache."""
    with info.file.open("rb") as file:
        os.posix_fadvise(file.fileno(), info.offset, info.nbytes, os.POSIX_FADV_WILLNEED)


def at(info: TensorInfo) -> torch.Tensor:
    """A weight, its pages there. InputError where the file became shorter.

    A file that becomes shorter while the weight is used ends the process, as any mapped one does.
    """
    start = info.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    before = info.offset - start
    with info.file.open("rb") as file:
        if os.fstat(file.fileno()).st_size < info.offset + info.nbytes:
            raise damaged(info.file, "it became shorter while it was read")
        mapped = mmap.mmap(
            file.fileno(), before + info.nbytes, access=mmap.ACCESS_COPY, offset=start
        )
    _have_pages(mapped)
    data = torch.frombuffer(mapped, dtype=torch.uint8, count=info.nbytes, offset=before)
    return data.view(info.dtype).reshape(info.shape)


def _have_pages(mapped: mmap.mmap) -> None:
    """All at once: a fault for each costs several times as much."""
    try:
        mapped.madvise(_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a Linux before 5.14, where each page comes when used
            raise
