"""Hugging Face folder -> quantised GGUF in one pass, without an intermediate file or much memory.

Everything is decided from the headers (`preflight`), the GGUF's own header is written, and then
every chunk of rows is one job for a pool of threads: read, to float32, quantise, write at its final
place. Several files of one model are written from one read. Memory does not grow with the model.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from slimtune.artifacts import run_of
from slimtune.errors import InputError, naming
from slimtune.export import feedback
from slimtune.export.architecture import write_architecture
from slimtune.export.plan import Encoding, GgufPlan
from slimtune.export.preflight import preflight, require_disk
from slimtune.export.quant_types import PLAIN, encoded_bytes
from slimtune.export.tensors import row_order
from slimtune.export.vocabulary import write_vocabulary
from slimtune.models.served_decoding import gguf_sampling

_log = logging.getLogger(__name__)

# 512 kB of float32 a thread. Of larger blocks malloc gives the memory back after each use, and to
# fault it in again costs as much as the work: 3.4 million faults at 1.1 B against a thousand.
_CHUNK_VALUES = 1 << 17
_FLOAT16_MAX = 65504.0  # also the limit of the scales inside quantised blocks
_WIDE = (Type.F32, Type.BF16)


@dataclass(frozen=True)
class ConversionReport:
    """What was written: file bytes, parameters, tensors per type, which fell back, seconds."""

    bytes: int
    parameters: int
    types: dict[str, int]
    fallbacks: list[str]
    seconds: float


class _Chunk(NamedTuple):
    """Rows start..stop of a tensor, which every file needs."""

    tensor: str
    start: int
    stop: int


class _File(NamedTuple):
    """A file being written: where the data of each tensor begins, and where the file ends."""

    plan: GgufPlan
    path: Path
    positions: dict[str, int]
    end: int


def write_gguf(
    model: Path | str,
    output: Path | str,
    quantization_name: str,
    *,
    encoding: Encoding | None = None,
    threads: int | None = None,
    name: str | None = None,
) -> ConversionReport:
    """One folder to one file: `preflight`, then `write`."""
    plan = preflight(model, quantization_name, encoding=encoding)
    return write_file({Path(output): plan}, threads=threads, name=name)[0]


def write_file(
    plans: dict[Path, GgufPlan], *, threads: int | None = None, name: str | None = None
) -> list[ConversionReport]:
    """Writes one file for each plan, all from one read of the model that the plans share.

    Files that are there are written over; failed ones are left for the caller to remove. Raises
    ResourceError for lack of disk, OSError where the system refuses a write; InputError for a
    tensor with NaN, infinity, or values beyond the type's range.
    """
    started = time.perf_counter()
    require_disk(plans)
    with naming(next(iter(plans))):
        files = [_write_header(plan, path, name) for path, plan in plans.items()]
        _write_tensors(files, threads or os.cpu_count() or 1)
    seconds = time.perf_counter() - started
    for file in files:
        _log.info("%s: %.1f MB in %.1f s", file.path.name, file.end / 1e6, seconds)
    return [
        ConversionReport(f.end, f.plan.parameters, f.plan.types, f.plan.fallbacks, seconds)
        for f in files
    ]


def _write_header(plan: GgufPlan, path: Path, name: str | None) -> _File:
    """Header, metadata and tensor table."""
    writer = gguf.GGUFWriter(None, plan.architecture.name)
    for tensor, choice in plan.choices.items():
        shape = plan.shape(tensor)
        size = encoded_bytes(shape, choice.type)
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=choice.type)
    _write_metadata(plan, writer, name)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return _laid_out(plan, path, path.stat().st_size)


def _laid_out(plan: GgufPlan, path: Path, header: int) -> _File:
    position, positions = padded(header), {}
    for tensor, choice in plan.choices.items():
        positions[tensor] = position
        position = padded(position + encoded_bytes(plan.shape(tensor), choice.type))
    return _File(plan, path, positions, position)


def header_bytes(plan: GgufPlan, name: str | None = None) -> int:
    """Where the first tensor begins: the same whatever types the tensors get."""
    with TemporaryDirectory() as folder:
        file = _write_header(plan, Path(folder) / "header.gguf", name)
        return min(file.positions.values())


def padded(position: int) -> int:
    """The next place at which a tensor may begin."""
    return gguf.GGUFWriter.ggml_pad(position, gguf.GGUF_DEFAULT_ALIGNMENT)


def _write_metadata(plan: GgufPlan, writer: gguf.GGUFWriter, name: str | None) -> None:
    total, shared, expert, experts = writer.get_total_parameter_count()
    general = gguf.Metadata.load(None, plan.folder, None, total)
    general.name = name or general.name or plan.folder.name
    if run_of(plan.folder):  # the card is ours, and a merge on the way to the file has none
        general.base_models = general.tags = None
        general.license = general.license if general.license != "unknown" else None
    for field in fields(general):  # a base's own decoding is not inherited in silence
        if field.name.startswith("sampling_"):
            setattr(general, field.name, None)
    for name, value in gguf_sampling(plan.generation, plan.architecture.context).items():
        setattr(general, f"sampling_{name}", value)
    general.size_label = general.size_label or gguf.size_label(total, shared, expert, experts)
    writer.add_type(gguf.GGUFType.MODEL)
    general.set_gguf_meta_model(writer)
    write_architecture(writer, plan.architecture)
    # llama.cpp's tools write a template only where the folder has one.
    template = None if plan.encoding.through_f16 else plan.template
    write_vocabulary(writer, plan.folder, plan.vocabulary, template)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(plan.file_type)
    if plan.encoding.importance is not None:
        plan.encoding.importance.write_metadata(writer)


def _write_tensors(files: Sequence[_File], threads: int) -> None:
    for file in files:
        os.truncate(file.path, file.end)
        for kind in {choice.type for choice in file.plan.choices.values()}:
            file.plan.encoding.encoder.prepare(kind)
    waiting = iter(_chunks(files[0].plan))
    with ThreadPoolExecutor(threads) as pool:
        # A few jobs at a time: a hundred thousand futures would weigh more than the rows.
        running = {pool.submit(_write_chunk, files, c) for c in islice(waiting, 4 * threads)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                running |= {pool.submit(_write_chunk, files, c) for c in islice(waiting, len(done))}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _chunks(plan: GgufPlan) -> Iterator[_Chunk]:
    """All jobs in file order; chunks of permuted tensors hold whole heads."""
    for name in plan.tensors:
        rows, columns = _matrix(plan.shape(name))
        order = row_order(plan.architecture, name)
        unit = 1 if order is None else len(order)
        step = max(1, _CHUNK_VALUES // (columns * unit)) * unit
        for start in range(0, rows, step):
            yield _Chunk(name, start, min(start + step, rows))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns); a vector is a column, so that a bias can be permuted like its weight."""
    return shape[0], math.prod(shape[1:])


def _write_chunk(files: Sequence[_File], chunk: _Chunk) -> None:
    rows = _read_rows(files[0].plan, chunk)
    for file in files:
        encoded = _encoded(file.plan, chunk, rows)
        _, columns = _matrix(file.plan.shape(chunk.tensor))
        kind = file.plan.choices[chunk.tensor].type
        position = file.positions[chunk.tensor] + encoded_bytes((chunk.start, columns), kind)
        with file.path.open("r+b", buffering=0) as stream:  # its own position: no lock needed
            stream.seek(position)
            view = memoryview(encoded).cast("B")
            while view:
                view = view[stream.write(view) :]


def _read_rows(plan: GgufPlan, chunk: _Chunk) -> np.ndarray:
    """float32 (rows, columns) in llama.cpp's order."""
    if chunk.tensor in plan.computed:
        return plan.computed[chunk.tensor][chunk.start : chunk.stop, None]
    rows = plan.checkpoint.read_float32(plan.source[chunk.tensor], chunk.start, chunk.stop)
    order = row_order(plan.architecture, chunk.tensor)
    if order is None:
        return rows
    return rows.reshape(-1, len(order), rows.shape[1])[:, order].reshape(rows.shape)


def largest_value(rows: np.ndarray, kind: Type) -> tuple[float, float]:
    """The largest magnitude among `rows`, and the largest that the type holds."""
    limit = np.finfo(np.float32).max if kind in _WIDE else _FLOAT16_MAX
    return max(rows.max(), -rows.min()), limit


def _encoded(plan: GgufPlan, chunk: _Chunk, rows: np.ndarray) -> np.ndarray:
    """The bytes of rows in their type; InputError for values that it cannot hold."""
    if chunk.tensor in plan.encoded:
        return np.ascontiguousarray(plan.encoded[chunk.tensor][chunk.start : chunk.stop])
    kind = plan.choices[chunk.tensor].type
    _require_range(plan, chunk, rows, kind)
    squares = None if kind in PLAIN else plan.feedback(chunk.tensor)
    return encode(plan, chunk.tensor, rows, kind, squares)


def encode(
    plan: GgufPlan, tensor: str, rows: np.ndarray, kind: Type, squares: np.ndarray | None = None
) -> np.ndarray:
    """The bytes of some rows of a tensor in a type, as the plan's encoding has it.

    `squares`: how columns make up for those before them, where they do.
    """
    encoding = plan.encoding
    if encoding.through_f16 and kind not in PLAIN:
        stored = plan.checkpoint.tensors[plan.source[tensor]]
        rows = encoding.encoder.through_f16(rows, bf16=stored.kind == "BF16")
    weights = None if kind in PLAIN else plan.column_weights(tensor)
    if squares is not None:
        return feedback.encode(encoding.encoder, rows, kind, squares, weights)
    return encoding.encoder.encode(rows, kind, weights)


def _require_range(plan: GgufPlan, chunk: _Chunk, rows: np.ndarray, kind: Type) -> None:
    largest, limit = largest_value(rows, kind)
    if largest <= limit:  # never true for NaN
        return
    where = f"{plan.checkpoint.folder}: {plan.source[chunk.tensor]} holds {largest} in rows "
    where += f"{chunk.start} to {chunk.stop}"
    if not np.isfinite(largest):
        raise InputError(
            where,
            "training diverged, or the file is damaged",
            "train again with a smaller learning rate, or copy the folder again",
        )
    what = (
        "float16 ends" if kind == Type.F16 else f"the scales of {kind.name} are float16, which ends"
    )
    raise InputError(
        where,
        f"{what} at 65504; bfloat16 reaches as far as float32",
        "convert to BF16, which holds them as they are: --quantization BF16",
    )
