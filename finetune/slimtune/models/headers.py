"""One safetensors file: its header read and checked, or written for tensors to come; rows read.

Format: huggingface.co/docs/safetensors (u64 header length, JSON header, little-endian data).
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from slimtune.console import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Spec = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `nbytes` bytes at `offset` of `file` (absolute, header included)."""

    file: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file in data order; InputError where header and file disagree."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
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
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": span}
        position = span[1]
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        handle.truncate(8 + len(encoded) + position)
    return read_header(file)


def read_tensor(info: TensorInfo, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows start..stop of a tensor (all by default) in their own buffer; safe from many threads."""
    if not info.shape:
        return _read_bytes(info, 0, info.nbytes).view(info.dtype).reshape(())
    stop = info.shape[0] if stop is None else stop
    row = math.prod(info.shape[1:]) * info.dtype.itemsize
    rows = _read_bytes(info, start * row, (stop - start) * row).view(info.dtype)
    return rows.reshape(stop - start, *info.shape[1:])


def _read_bytes(info: TensorInfo, start: int, count: int) -> torch.Tensor:
    data = torch.empty(count, dtype=torch.uint8)
    view = memoryview(data.numpy())
    # A handle per read: no shared file position, so threads need no lock; Windows has no pread.
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.offset + start)
        while view:
            got = file.readinto(view)
            if not got:
                raise damaged(info.file, "it became shorter while it was read")
            view = view[got:]
    return data


def _tensor_info(file: Path, data: int, entry: dict) -> TensorInfo:
    start, stop = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{entry} does not add up")
    return TensorInfo(file, data + start, stop - start, dtype, shape)


def damaged(file: Path, why: str) -> InputError:
    cure = "download or copy this file again, or run the stage that wrote it again"
    return InputError(f"{file}: damaged safetensors file", why, cure)
