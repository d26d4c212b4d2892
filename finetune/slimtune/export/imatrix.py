"""Importance matrices: for each matrix, the mean square of what enters each of its columns.

An encoder that knows them keeps the columns that matter more exactly. llama.cpp's files are read in
both formats, GGUF (`NAME.in_sum2` and `NAME.counts`) and the older .dat (int32 counts, names,
float32 sums); ours are written as GGUF, and llama-quantize reads them.

An importance matrix of our own: sums of squares of what enters each linear layer.

For every matrix W but the output's, sum over tokens t of x_t², x_t being the input of W at t, one
sum a column; as llama-imatrix measures it, on prepared rows rendered as in training.
"""

import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from slimtune import prompts
from slimtune.config import Config
from slimtune.console import InputError, SettingsError, near
from slimtune.data.rows import read_rows
from slimtune.export.modelfile import chosen
from slimtune.export.plan import GgufPlan, ModelSource, load_model
from slimtune.export.tensors import gguf_name
from slimtune.models import tokenizers

_SUM, _COUNT = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """GGUF name of a matrix -> float32 mean squares of its input, one a column."""

    weights: dict[str, np.ndarray]
    file: str
    dataset: str | None
    chunks: int

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
        with file.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF"
        importance = _from_gguf(file) if is_gguf else _from_dat(file)
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise _no_imatrix(file, str(error) or type(error).__name__) from error
    for name, weights in importance.weights.items():
        if not np.isfinite(weights).all():
            raise _no_imatrix(file, f"{name} is not finite")
    return importance


def write_imatrix(
    file: Path, sums: dict[str, np.ndarray], counts: dict[str, int], dataset: str, chunk: int
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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _from_gguf(file: Path) -> Importance:
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor.data.reshape(-1) for tensor in reader.tensors}
    weights = {}
    for name in (n.removesuffix(_SUM) for n in tensors if n.endswith(_SUM)):
        sums, count = tensors[name + _SUM].astype(np.float32), tensors[name + _COUNT]
        weights[name] = sums / np.float32(count[0]) if count[0] > 0 else np.ones_like(sums)
    datasets = reader.fields["imatrix.datasets"].contents()
    chunks = int(reader.fields["imatrix.chunk_count"].contents())
    return Importance(weights, file.name, datasets[0] if datasets else None, chunks)


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


_log = logging.getLogger(__name__)

OUTPUT = "output.weight"


def measure_importance(
    source: ModelSource, plan: GgufPlan, output: Path, config: Config
) -> Importance:
    """Measures `imatrix_rows` training rows and keeps the sums in `output`, a GGUF.

    The model is in memory once, as float32. Raises SettingsError where there are no rows.
    """
    file, count = config.training.train_data, config.gguf.imatrix_rows
    if not file.is_file():
        raise SettingsError(
            f"gguf.imatrix is auto, and {near(file)} is not there",
            "importance is measured on training rows",
            "run prepare_data.py, name rows with --train-data, or a file with --imatrix",
        )
    tokenizer = tokenizers.load_tokenizer(source.folder)
    template = chosen(source.folder, config.model.prompt_template)
    rows = [row["messages"] for row in read_rows(file)[:count]]
    longest = config.training.max_length
    encoded = [prompts.encode(tokenizer, r, template, longest) for r in rows]
    ids = [row["input_ids"] for row in encoded if row]
    _log.info("measuring importance on %d rows of %s", len(ids), near(file))
    sums, counts = sums_of_squares(
        load_model(source),
        ids,
        lambda name: gguf_name(plan.architecture, name),
    )
    write_imatrix(output, sums, counts, file.name, longest)
    return read_imatrix(output)


@torch.inference_mode()
def sums_of_squares(
    model: PreTrainedModel, rows: Iterable[list[int]], name_of: Callable[[str], str | None]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(sums, tokens) by GGUF name, over all positions of `rows` (token ids, one row a sequence)."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            squares = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[name] = sums.get(name, 0) + squares
            counts[name] = counts.get(name, 0) + inputs[0].flatten(0, -2).shape[0]

        return add

    hooks = []
    for module_name, module in model.named_modules():
        name = name_of(f"{module_name}.weight") if isinstance(module, torch.nn.Linear) else None
        if name is not None and name != OUTPUT:
            hooks.append(module.register_forward_pre_hook(watch(name)))
    for row in rows:
        model(torch.tensor([row]), use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return {name: total.float().numpy() for name, total in sums.items()}, counts
