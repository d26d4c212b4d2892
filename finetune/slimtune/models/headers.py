"""One safetensors file: its header read and checked, or written for tensors to come; rows read.

Format: huggingface.co/docs/safetensors (u64 header length, JSON header, little-endian data). torch
is imported only where a tensor is asked for: by itself it weighs more (200 MB) than a conversion.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimtune.artifacts.files import require_fetched
from slimtune.errors import InputError

if TYPE_CHECKING:
    import torch

# What the header calls a type: (torch's name, bytes of a value).
_KINDS = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_KIND_OF = {f"torch.{name}": kind for kind, (name, _) in _KINDS.items()}

Spec = Mapping[str, tuple["torch.dtype", tuple[int, ...]]]


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `nbytes` bytes at `offset` of `file` (absolute, header included).

    `kind` is the header's name of its type: F32, BF16, …
    """

    file: Path
    offset: int
    nbytes: int
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, _KINDS[self.kind][0])

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * _KINDS[self.kind][1]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file in data order; InputError where header and file disagree."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            require_fetched(file)
            raise damaged(file, "it ends inside its header")
        try:
            header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            infos = {n: _tensor_info(file, 8 + length, entry) for n, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(file, f"its header cannot be read ({error!r})") from error
    infos = dict(sorted(infos.items(), key=lambda item: item[1].offset))
    end = max((info.offset + info.nbytes for info in infos.values()), default=8 + length)
    if end != size:
        raise damaged(file, f"its header describes {end:,} bytes, the file has {size:,}")
    return infos


def write_header(file: Path, spec: Spec) -> dict[str, TensorInfo]:
    """Writes the header and sets the final size; wide types come first, so all are aligned."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in sorted(spec.items(), key=lambda item: -item[1][0].itemsize):
        span = [position, position + math.prod(shape) * dtype.itemsize]
        header[name] = {"dtype": _KIND_OF[str(dtype)], "shape": list(shape), "data_offsets": span}
        position = span[1]
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        handle.truncate(8 + len(encoded) + position)
    return read_header(file)


def read_tensor(info: TensorInfo, start: int = 0, stop: int | None = None) -> "torch.Tensor":
    """Rows start..stop of a tensor (all by default) in their own buffer; safe from many threads."""
    import torch

    first, last = _span(info, start, stop)
    data = torch.empty(last - first, dtype=torch.uint8)
    _read_into(memoryview(data.numpy()), info, first)
    data = data.view(info.dtype)
    if not info.shape:
        return data.reshape(())
    stop = info.shape[0] if stop is None else stop
    return data.reshape(stop - start, *info.shape[1:])


def read_into(info: TensorInfo, target: "torch.Tensor") -> None:
    """A whole tensor into `target`: contiguous, on the CPU, of the same type; from any thread."""
    import torch

    _read_into(memoryview(target.reshape(-1).view(torch.uint8).numpy()), info, 0)


def read_bytes(info: TensorInfo, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The same rows as they lie in the file: uint8, one dimension."""
    first, last = _span(info, start, stop)
    data = np.empty(last - first, np.uint8)
    _read_into(memoryview(data), info, first)
    return data


def read_float32(info: TensorInfo, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The same rows as float32, two dimensions: a vector is a column. F32, F16, BF16 and F64."""
    data = read_bytes(info, start, stop)
    if info.kind == "BF16":  # the upper half of a float32
        wide = np.left_shift(data.view("<u2"), 16, dtype="<u4").view("<f4")
    else:
        wide = data.view(_FLOATS[info.kind]).astype(np.float32, copy=False)
    return wide.reshape(-1, max(1, math.prod(info.shape[1:])))


def _span(info: TensorInfo, start: int, stop: int | None) -> tuple[int, int]:
    """First and last byte of rows start..stop, from the tensor's own first byte on."""
    last = info.nbytes if stop is None else stop * info.row_bytes
    return start * info.row_bytes, last


def _read_into(view: memoryview, info: TensorInfo, first: int) -> None:
    # A handle per read: no shared file position, so threads need no lock; Windows has no pread.
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.offset + first)
        while view:
            got = file.readinto(view)
            if not got:
                raise damaged(info.file, "it became shorter while it was read")
            view = view[got:]


def _tensor_info(file: Path, data: int, entry: dict) -> TensorInfo:
    start, stop = entry["data_offsets"]
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if stop - start != math.prod(shape) * _KINDS[kind][1]:
        raise ValueError(f"{entry} does not add up")
    return TensorInfo(file, data + start, stop - start, kind, shape)


def damaged(file: Path, why: str) -> InputError:
    cure = "download or copy this file again, or run the stage that wrote it again"
    return InputError(f"{file}: damaged safetensors file", why, cure)
