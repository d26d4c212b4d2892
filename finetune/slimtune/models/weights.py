"""Safetensors checkpoints, tensor by tensor: headers first, then only the rows somebody asks for.

Nothing here holds a model in memory. `Checkpoint` parses the headers of one file or of all shards
and reads rows on demand; `CheckpointWriter` writes headers for a known set of shapes and takes the
tensors in any order. There is no mmap: mapped pages count as resident memory and would make every
figure about memory a matter of luck.
"""

import math
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from slimtune.artifacts.files import write_json
from slimtune.errors import InputError
from slimtune.machine.disks import require_space
from slimtune.models.family import place
from slimtune.models.folders import INDEX_FILE, SINGLE_FILE, weight_files
from slimtune.models.headers import (
    Spec,
    TensorInfo,
    read_float32,
    read_header,
    read_tensor,
    write_header,
)
from slimtune.models.json_files import read_model_json

if TYPE_CHECKING:  # torch weighs more than everything here, and a conversion does without it
    import torch

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_LOOKED_AT = 1 << 20  # values together, where NaN and infinity are looked for
CHUNK_BYTES = 4 << 20
FULL_PRECISION = ("F32", "F16", "BF16", "F64")

_NOT_COMPANIONS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl",
}  # fmt: skip
_NOT_COMPANION_NAMES = {"run.json", "adapter_config.json", "trainer_state.json", INDEX_FILE}
_NOT_COMPANION_NAMES |= {"README.md"}  # it speaks of the model it came with, not of what was made


class Checkpoint:
    """The weights of a model folder, read from their headers alone.

    `tensors` keeps the order of the data on disk, shard by shard. Raises InputError for a folder
    without safetensors weights, a missing or cut-off shard, or a header that does not add up.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.tensors: dict[str, TensorInfo] = {}
        for file in weight_files(self.folder):
            self.tensors.update(read_header(file))

    @cached_property
    def config(self) -> dict:
        config = read_model_json(self.folder / "config.json")
        require_layers(self.folder, config, self.tensors)
        return config

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def files(self) -> dict[str, str]:
        """Tensor name -> name of the shard that holds it."""
        return {name: info.file.name for name, info in self.tensors.items()}

    @property
    def bytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding itself."""
        return self.config.get("tie_word_embeddings", False)

    @property
    def parameters(self) -> int:
        """Parameter count; an output layer tied to the embedding counts once, stored or not."""
        names = self.tensors.keys() - ({OUTPUT} if self.tied else set())
        return sum(math.prod(self.tensors[name].shape) for name in names)

    def dtype(self, name: str) -> "torch.dtype":
        return self.tensors[name].dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> "torch.Tensor":
        """Rows start..stop (all by default) in a buffer of their own; safe from many threads."""
        return read_tensor(self.tensors[name], start, stop)

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The same as float32 in numpy, two dimensions: for those who do without torch."""
        return read_float32(self.tensors[name], start, stop)

    def rows(self, name: str) -> Iterator[tuple[int, "torch.Tensor"]]:
        """The tensor in pieces of at most CHUNK_BYTES: (first row, rows); a scalar is one piece."""
        info = self.tensors[name]
        if not info.shape:
            yield 0, self.read(name)
            return
        step = max(1, CHUNK_BYTES * info.shape[0] // max(1, info.nbytes))
        for start in range(0, info.shape[0], step):
            yield start, self.read(name, start, min(start + step, info.shape[0]))

    def require_full_precision(self, purpose: str) -> None:
        """InputError if the weights are quantised (bitsandbytes, GPTQ, fp8), unfit to `purpose`."""
        odd = [name for name, info in self.tensors.items() if info.kind not in FULL_PRECISION]
        if not odd and "quantization_config" not in self.config:
            return
        found = "its config.json says so"
        if odd:
            found = f"{odd[0]} is {self.tensors[odd[0]].kind}"
        raise InputError(
            f"{self.folder}: quantised weights cannot be used to {purpose}",
            f"{found}; rounding again what was rounded once ruins a model",
            "give the original 16- or 32-bit model folder instead",
        )


class CheckpointWriter:
    """Writes safetensors of known shapes: headers first, then rows in any order, from any thread.

    `spec` maps each tensor's name to (dtype, shape). Tensors fill shards of at most `shard_bytes`
    bytes in the order of `spec`, unless `files` names each one's shard. `close` writes the index if
    there is more than one shard, flushes all to disk, and raises ValueError if a tensor is
    incomplete. Raises ResourceError, before it writes anything, where the disk has no room.
    """

    def __init__(
        self,
        folder: Path | str,
        spec: Spec,
        shard_bytes: int = 5_000_000_000,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {n: math.prod(shape) * dtype.itemsize for n, (dtype, shape) in spec.items()}
        require_space(self.folder, sum(sizes.values()), "the weights are that large")
        self.files = dict(files) if files is not None else pack_shards(sizes, shard_bytes)
        self.tensors: dict[str, TensorInfo] = {}
        for shard in dict.fromkeys(self.files[name] for name in spec):
            members = {n: spec[n] for n in spec if self.files[n] == shard}
            self.tensors.update(write_header(self.folder / shard, members))
        self._missing = sizes
        self._lock = threading.Lock()

    def write(self, name: str, rows: "torch.Tensor", start: int = 0) -> None:
        """Writes `rows`, the tensor's rows from `start` on (a whole tensor by default)."""
        info = self.tensors[name]
        if rows.dtype != info.dtype or rows.shape[1:] != info.shape[1:]:
            raise ValueError(f"{name}: got {rows.dtype} {tuple(rows.shape)}, spec says {info}")
        import torch  # here it is loaded already: `rows` is of it

        data = rows.contiguous().reshape(-1).view(torch.uint8).numpy()
        row = info.row_bytes
        if start * row + data.nbytes > info.nbytes:
            raise ValueError(f"{name}: rows from {start} reach beyond {info.shape}")
        with info.file.open("r+b", buffering=0) as file:
            file.seek(info.offset + start * row)
            _write_all(file, memoryview(data))
        with self._lock:
            self._missing[name] -= data.nbytes

    def close(self) -> None:
        incomplete = [name for name, missing in self._missing.items() if missing]
        if incomplete:
            raise ValueError(f"{self.folder}: not written exactly once: {incomplete[:4]}")
        shards = sorted({info.file for info in self.tensors.values()})
        if [shard.name for shard in shards] != [SINGLE_FILE]:
            self._write_index()
            shards.append(self.folder / INDEX_FILE)
        for file in shards:
            with file.open("r+b") as handle:
                os.fsync(handle.fileno())

    def _write_index(self) -> None:
        total = sum(info.nbytes for info in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": self.files}
        write_json(self.folder / INDEX_FILE, index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()


def require_layers(folder: Path, config: dict, tensors: Iterable[str]) -> None:
    """InputError where config.json tells of another number of layers than the weights have: a
    thousand million of them would be planned, and built, before one is missed."""
    held = {layer for layer, _ in map(place, tensors) if layer is not None}
    told = config.get("num_hidden_layers")
    if told is not None and held and told != len(held):
        raise InputError(
            f"{folder}: {told:,} layers in config.json, {len(held):,} in the weights",
            "one of the two belongs to another model",
            "copy config.json and the weights again, both from the original model",
        )


def all_finite(weight: "torch.Tensor") -> bool:
    """Whether no value is NaN or infinite, some at a time.

    A sum in float32 is one pass (135 M parameters on two cores: 0.02 s in float32, 0.3 s in
    bfloat16), but of bfloat16 it makes a copy, which of TinyLlama's output layer were 262 MB; one
    that overflows is no proof yet.
    """
    import torch  # whoever has a weight has it

    parts = weight.reshape(-1).split(_LOOKED_AT)
    return all(one.sum(dtype=torch.float32).isfinite() or one.isfinite().all() for one in parts)


def not_finite(folder: Path, name: str) -> InputError:
    """What is said of a tensor with NaN or infinity, by whoever reads it first."""
    return InputError(
        f"{folder}: {name} holds NaN or infinity",
        "such a model answers nothing, trained, pruned or not",
        "copy it again, or run the stage that wrote it again",
    )


def pack_shards(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, str]:
    """Tensor name -> shard file name, filling shards in order up to `shard_bytes` each."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return dict.fromkeys(sizes, SINGLE_FILE)
    return {
        name: f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        for number, group in enumerate(groups, 1)
        for name in group
    }


def copy_companions(
    source: Path | str,
    target: Path | str,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> list[str]:
    """Copies what lies beside the weights: config, tokenizer, template, licence; their names.

    Weights in any format, `run.json`, the model card, hidden files and subfolders stay behind, and
    so do the names in `without`; `only` narrows the rest.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    names = [file.name for file in sorted(Path(source).iterdir()) if _is_companion(file)]
    names = [n for n in names if n not in without and (only is None or n in only)]
    for name in names:
        shutil.copyfile(Path(source) / name, target / name)
    return names


def _is_companion(file: Path) -> bool:
    hidden = file.name.startswith(".")
    weights = file.suffix in _NOT_COMPANIONS or file.name.endswith(".index.json")
    return file.is_file() and not hidden and not weights and file.name not in _NOT_COMPANION_NAMES


def _write_all(file: FileIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view[: 64 << 20]) :]
