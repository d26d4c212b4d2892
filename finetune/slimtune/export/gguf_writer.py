"""Hugging Face folder -> quantised GGUF in one pass, without an intermediate file or much memory.

Everything is decided from the headers (`preflight`), the GGUF's own header is written, and then
every chunk of rows is one job for a pool of threads: read, to float32, quantise, write at its final
place. Memory does not grow with the model.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import logging
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from slimtune.console import InputError, ResourceError
from slimtune.export.architecture import row_order, write_architecture
from slimtune.export.plan import Plan
from slimtune.export.preflight import preflight, require_disk
from slimtune.export.quant_types import PLAIN, encoded_bytes
from slimtune.export.quant_types import quantization as named
from slimtune.export.vocabulary import write_vocabulary
from slimtune.models.llama_library import library, quantize_rows

log = logging.getLogger(__name__)

_CHUNK_VALUES = 1 << 19  # 2 MB of float32 a thread: fast enough, and small beside Python itself
_FLOAT16_MAX = 65504.0  # also the limit of the scales inside quantised blocks


@dataclass(frozen=True)
class ConversionReport:
    """What was written: file bytes, parameters, tensors per type, which fell back, seconds."""

    bytes: int
    parameters: int
    types: dict[str, int]
    fallbacks: list[str]
    seconds: float


class _Chunk(NamedTuple):
    """Rows start..stop of a tensor, to be written from byte `position` of the file on."""

    tensor: str
    start: int
    stop: int
    position: int


def convert(
    model_folder: Path | str,
    output: Path | str,
    quantization: str,
    *,
    threads: int | None = None,
    name: str | None = None,
) -> ConversionReport:
    """Writes exactly `output`, over what is there; a failed file is left for the caller to remove.

    Raises what `preflight` raises; ResourceError for lack of disk; InputError for a tensor with
    NaN, infinity, or values beyond the type's range.
    """
    started, output = time.perf_counter(), Path(output)
    plan = preflight(model_folder, quantization)
    require_disk(plan, output)
    try:
        data = _write_header(plan, output, name)
        _write_tensors(plan, output, data, threads or os.cpu_count() or 1)
    except OSError as error:
        raise ResourceError(
            f"{output}: could not be written",
            str(error),
            "check the disk and the folder's permissions, then run the same command again",
        ) from error
    seconds = time.perf_counter() - started
    size = output.stat().st_size
    log.info("%s: %.1f MB in %.1f s", output, size / 1e6, seconds)
    return ConversionReport(size, plan.parameters, plan.types, plan.fallbacks, seconds)


def _write_header(plan: Plan, output: Path, name: str | None) -> int:
    """Header, metadata and tensor table; returns where the tensors' data begins."""
    writer = gguf.GGUFWriter(None, "llama")
    for tensor, choice in plan.choices.items():
        shape = plan.shape(tensor)
        size = encoded_bytes(shape, choice.type)
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=choice.type)
    _write_metadata(plan, writer, name)
    writer.write_header_to_file(output)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return gguf.GGUFWriter.ggml_pad(output.stat().st_size, writer.data_alignment)


def _write_metadata(plan: Plan, writer: gguf.GGUFWriter, name: str | None) -> None:
    total, shared, expert, experts = writer.get_total_parameter_count()
    general = gguf.Metadata.load(None, plan.folder, None, total)
    general.name = name or general.name or plan.folder.name
    general.size_label = general.size_label or gguf.size_label(total, shared, expert, experts)
    writer.add_type(gguf.GGUFType.MODEL)
    general.set_gguf_meta_model(writer)
    write_architecture(writer, plan.architecture)
    write_vocabulary(writer, plan.folder, plan.vocabulary)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(named(plan.quantization).file_type)


def _write_tensors(plan: Plan, output: Path, data: int, threads: int) -> None:
    chunks, end = _chunks(plan, data)
    os.truncate(output, end)
    if not plan.numpy_only:
        for kind in {choice.type for choice in plan.choices.values()}:
            library().ggml_quantize_init(kind)
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_write_chunk, plan, output, chunk) for chunk in chunks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _chunks(plan: Plan, data: int) -> tuple[list[_Chunk], int]:
    """All jobs in file order, and the file's size; chunks of permuted tensors hold whole heads."""
    chunks, position = [], data
    for name, choice in plan.choices.items():
        rows, columns = _matrix(plan.shape(name))
        row_bytes = encoded_bytes((columns,), choice.type)
        order = row_order(plan.architecture, name)
        unit = 1 if order is None else len(order)
        step = max(1, _CHUNK_VALUES // (columns * unit)) * unit
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            chunks.append(_Chunk(name, start, stop, position + start * row_bytes))
        position = gguf.GGUFWriter.ggml_pad(
            position + rows * row_bytes, gguf.GGUF_DEFAULT_ALIGNMENT
        )
    return chunks, position


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns); a vector is a column, so that a bias can be permuted like its weight."""
    return shape[0], math.prod(shape[1:])


def _write_chunk(plan: Plan, output: Path, chunk: _Chunk) -> None:
    rows = _read_rows(plan, chunk)
    encoded = _encode(rows, plan.choices[chunk.tensor].type, plan.numpy_only)
    with output.open("r+b", buffering=0) as file:  # its own position: no lock, no pwrite needed
        file.seek(chunk.position)
        view = memoryview(encoded).cast("B")
        while view:
            view = view[file.write(view) :]


def _read_rows(plan: Plan, chunk: _Chunk) -> np.ndarray:
    """float32 (rows, columns) in llama.cpp's order; InputError for values the type cannot hold."""
    source = plan.source[chunk.tensor]
    tensor = plan.checkpoint.read(source, chunk.start, chunk.stop)
    rows = tensor.to(torch.float32).numpy().reshape(chunk.stop - chunk.start, -1)
    limit = np.finfo(np.float32).max if _is_wide(plan, chunk.tensor) else _FLOAT16_MAX
    largest = np.abs(rows).max()
    if not largest <= limit:  # also true for NaN
        raise InputError(
            f"{plan.folder}: {source} holds {largest} in rows {chunk.start} to {chunk.stop}",
            "training diverged, or the file is damaged",
            "train again with a smaller learning rate, or copy the folder again",
        )
    order = row_order(plan.architecture, chunk.tensor)
    if order is None:
        return rows
    return rows.reshape(-1, len(order), rows.shape[1])[:, order].reshape(rows.shape)


def _is_wide(plan: Plan, tensor: str) -> bool:
    return plan.choices[tensor].type in (Type.F32, Type.BF16)


def _encode(rows: np.ndarray, kind: Type, numpy_only: bool) -> np.ndarray:
    """The bytes of rows in a type, contiguous; ggml where it is there, its numpy twin otherwise."""
    if kind == Type.F32:
        return np.ascontiguousarray(rows)
    if kind == Type.F16:
        return rows.astype(np.float16)
    if numpy_only or kind in PLAIN:
        return np.ascontiguousarray(gguf.quants.quantize(rows, kind))
    return quantize_rows(rows, kind)
