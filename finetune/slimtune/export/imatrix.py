"""Importance matrices: for each matrix, the mean square of what enters each of its columns.

An encoder that knows them keeps the columns that matter more exactly. llama.cpp's files are read in
both formats, GGUF (`NAME.in_sum2` and `NAME.counts`) and the older .dat (int32 counts, names,
float32 sums); ours are written as GGUF, and llama-quantize reads them. Beside them ours may hold
what an error costs (`sensitivity`) as `NAME.fisher_rows` and `NAME.fisher_columns`, and how columns
make up for those before them (`feedback`) as `NAME.kept` and `NAME.feedback`: llama.cpp passes over
tensors that it does not know.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import gguf
import numpy as np

from slimtune.artifacts.files import require_fetched
from slimtune.errors import InputError
from slimtune.export.feedback import pairs_of, unpacked, width_of

_SUM, _COUNT = ".in_sum2", ".counts"
_ROWS, _COLUMNS, _ROUNDING = ".fisher_rows", ".fisher_columns", ".rounding"
_KEPT, _FEEDBACK = ".kept", ".feedback"
_LEAST = 1e-3  # of the mean


@dataclass(frozen=True, eq=False)
class Feedback:
    """How the columns of a matrix make up for each other: `feedback.packed`, read when needed.

    All of a model's weigh as much as its file; `kept` alone is in memory.
    """

    kept: np.ndarray
    read: Callable[[], np.ndarray]


_unpacking = Lock()


def squares_of(feedback: Feedback) -> np.ndarray:
    """What `feedback.encode` takes; kept for the next rows of the same matrix.

    Threads wait for each other: of 5,632 columns they take 6 MB, which two would fill at once.
    """
    with _unpacking:
        return _last_squares(feedback)


@lru_cache(maxsize=1)
def _last_squares(feedback: Feedback) -> np.ndarray:
    return unpacked(feedback.read(), len(feedback.kept))


@dataclass(frozen=True)
class Sensitivity:
    """What an error D in a matrix costs in nats a token: ½ Σ rows_i columns_j D_ij² / Σ rows.

    Half of `rounding` is what it costs that llama.cpp rounds what enters the matrix to 8 bits, with
    a scale for 32 and for 256 values. `feedback` is None where nothing was measured to make up by.
    """

    rows: np.ndarray
    columns: np.ndarray
    rounding: np.ndarray = field(default_factory=lambda: np.zeros(2, np.float32))
    feedback: Feedback | None = None

    @property
    def left(self) -> np.ndarray:
        """What an error of a column costs once those after it have made up for what they can."""
        return self.columns if self.feedback is None else self.columns * self.feedback.kept

    @property
    def column_weights(self) -> np.ndarray:
        """Those of columns, none of them nothing: an encoder divides by the sum over a block."""
        least = np.float32(_LEAST * self.left.mean(dtype=np.float64))
        return np.maximum(self.left, least or np.float32(1))


@dataclass(frozen=True)
class Importance:
    """GGUF name of a matrix -> float32 mean squares of its input, one a column.

    `sensitivity` is that of each matrix, embedding and output among them; empty where only inputs
    were measured.
    """

    weights: dict[str, np.ndarray]
    file: str
    dataset: str | None
    chunks: int
    sensitivity: dict[str, Sensitivity] = field(default_factory=dict)

    def of(self, name: str, columns: int) -> np.ndarray | None:
        """The weights of one tensor; None where it was not measured (the embedding never is)."""
        found = self.weights.get(name)
        if found is not None and len(found) != columns:
            raise InputError(
                f"{self.file}: {name} has {len(found)} weights",
                f"the tensor has {columns} columns: this importance matrix is another model's",
                "make one from this model: --imatrix auto",
            )
        return found

    def cost_of(self, name: str, shape: tuple[int, ...]) -> Sensitivity:
        """The sensitivity of a matrix (rows, columns); InputError where it is another model's."""
        found = self.sensitivity.get(name)
        if found is None or (len(found.rows), len(found.columns)) != shape:
            what = "is not in it" if found is None else f"has {len(found.rows)} rows"
            raise InputError(
                f"{self.file}: {name} {what}",
                f"the tensor has {shape[0]} rows: this sensitivity is another model's",
                "measure that of this model: --imatrix auto",
            )
        return found

    def write_metadata(self, writer: gguf.GGUFWriter) -> None:
        """The keys llama-quantize adds; of the file its name, not where it lies."""
        writer.add_string("quantize.imatrix.file", self.file)
        if self.dataset is not None:
            writer.add_string("quantize.imatrix.dataset", self.dataset)
        writer.add_uint32("quantize.imatrix.entries_count", len(self.weights))
        if self.chunks:
            writer.add_uint32("quantize.imatrix.chunks_count", self.chunks)


def read_imatrix(file: Path) -> Importance:
    """Raises InputError for a file that is no importance matrix, or holds values not finite."""
    try:
        require_fetched(file)
        with file.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
        importance = _from_gguf(file) if is_gguf else _from_dat(file)
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise _no_imatrix(file, str(error) or type(error).__name__) from error
    costs = importance.sensitivity.items()
    measured = [*importance.weights.items(), *((n, c.rows) for n, c in costs)]
    for name, weights in [*measured, *((n, c.columns) for n, c in costs)]:
        if not np.isfinite(weights).all():
            raise _no_imatrix(file, f"{name} is not finite")
    return importance


def write_imatrix(
    file: Path,
    sums: dict[str, np.ndarray],
    counts: dict[str, int],
    dataset: str,
    chunk: int,
    sensitivity: dict[str, Sensitivity] | None = None,
) -> None:
    """Sums of squares and the tokens they were summed over, as llama-imatrix writes them."""
    writer = gguf.GGUFWriter(file, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", max(1, max(counts.values()) // chunk))
    writer.add_uint32("imatrix.chunk_size", chunk)
    for name in sorted(sums):
        writer.add_tensor(name + _SUM, sums[name].astype(np.float32)[None])
        writer.add_tensor(name + _COUNT, np.array([[counts[name]]], np.float32))
    for name, cost in sorted((sensitivity or {}).items()):
        writer.add_tensor(name + _ROWS, cost.rows.astype(np.float32))
        writer.add_tensor(name + _COLUMNS, cost.columns.astype(np.float32))
        writer.add_tensor(name + _ROUNDING, cost.rounding.astype(np.float32))
        if cost.feedback is not None:
            writer.add_tensor(name + _KEPT, cost.feedback.kept)
            writer.add_tensor(name + _FEEDBACK, cost.feedback.read())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _from_gguf(file: Path) -> Importance:
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    places = {tensor.name: tensor.data_offset for tensor in reader.tensors}
    weights = {}
    for name in (n.removesuffix(_SUM) for n in tensors if n.endswith(_SUM)):
        sums, count = tensors[name + _SUM].astype(np.float32), tensors[name + _COUNT]
        weights[name] = sums / np.float32(count[0]) if count[0] > 0 else np.ones_like(sums)
    sensitivity = {
        name: Sensitivity(
            *(tensors[name + part].copy() for part in (_ROWS, _COLUMNS, _ROUNDING)),
            _feedback(file, name, tensors, places),
        )
        for name in (n.removesuffix(_ROWS) for n in tensors if n.endswith(_ROWS))
    }
    datasets = reader.fields["imatrix.datasets"].contents()
    chunks = int(reader.fields["imatrix.chunk_count"].contents())
    return Importance(weights, file.name, datasets[0] if datasets else None, chunks, sensitivity)


def _feedback(
    file: Path, name: str, tensors: dict[str, np.ndarray], places: dict[str, int]
) -> Feedback | None:
    """ValueError where it is not that of so many columns, or not finite."""
    if name + _FEEDBACK not in tensors:  # a file of before, or rows that only F16 can hold
        return None
    kept, pairs = tensors[name + _KEPT].copy(), tensors[name + _FEEDBACK]
    columns = len(tensors[name + _COLUMNS])
    fits = width_of(columns) and (len(kept), len(pairs)) == (columns, pairs_of(columns))
    if not fits or not np.isfinite(kept).all():
        raise ValueError(f"{name}{_FEEDBACK} is not that of {columns} columns")
    return Feedback(kept, partial(_read_pairs, file, name, places[name + _FEEDBACK], len(pairs)))


def _read_pairs(file: Path, name: str, place: int, count: int) -> np.ndarray:
    pairs = np.fromfile(file, np.float16, count, offset=place)
    if len(pairs) < count or not np.isfinite(pairs).all():
        raise _no_imatrix(file, f"{name}{_FEEDBACK} is cut short, or not finite")
    return pairs


def _from_dat(file: Path) -> Importance:
    weights = {}
    with file.open("rb") as stream:
        for _ in range(_int(stream)):
            name = _take(stream, _int(stream)).decode()
            calls, count = _int(stream), _int(stream)
            sums = np.frombuffer(_take(stream, 4 * count), "<f4")
            weights[name] = sums / np.float32(calls) if calls > 0 else sums.copy()
        rest = stream.read()
    chunks = struct.unpack_from("<i", rest)[0] if len(rest) >= 4 else 0
    dataset = rest[8:].decode("utf-8", "replace") or None
    return Importance(weights, file.name, dataset, chunks)


def _int(stream: BinaryIO) -> int:
    return struct.unpack("<i", _take(stream, 4))[0]


def _take(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size) if 0 <= size < 1 << 30 else b""
    if len(data) != size:
        raise ValueError("it ends in the middle of an entry")
    return data


def _no_imatrix(file: Path, why: str) -> InputError:
    return InputError(
        f"{file}: no importance matrix",
        why,
        "give a file that llama-imatrix wrote (.gguf or .dat), or --imatrix auto",
    )
