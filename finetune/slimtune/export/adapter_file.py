"""A LoRA adapter as a GGUF of its own, which llama.cpp puts on a base while it runs.

For a weight W of the base llama.cpp computes W x + alpha / rank * B (A x): the file holds
`NAME.lora_a` (rank x in), `NAME.lora_b` (out x rank) and one alpha for all. Where adapters scale
otherwise (rank-stabilised: arXiv:2312.03732; ranks or alphas by pattern) alpha is chosen to fit
most pairs, and the B of the others is multiplied by what is missing. The rows of B follow the rows
of W: those of q and k are permuted as in the base's file. An embedding has A transposed.

Layout: llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from slimtune.errors import InputError
from slimtune.export.architecture import Architecture
from slimtune.export.ggml import Encoder
from slimtune.export.gguf_writer import ConversionReport, largest_value
from slimtune.export.quant_types import encoded_bytes, quantization
from slimtune.export.tensors import file_order, gguf_name, row_order
from slimtune.models.adapter_config import needs_peft
from slimtune.models.adapters import Adapter
from slimtune.models.headers import read_tensor
from slimtune.models.weight_changes import Pair
from slimtune.models.weights import EMBEDDING, OUTPUT, Checkpoint

_log = logging.getLogger(__name__)

_ALPHA = gguf.Keys.Adapter.LORA_ALPHA


@dataclass(frozen=True)
class _Factor:
    """One of the two matrices of a pair, as the file will hold it."""

    name: str
    shape: tuple[int, int]
    type: Type
    fallback: bool
    weight: str
    is_b: bool


@dataclass(frozen=True)
class AdapterFile:
    """A plan: which adapter becomes which tensors, for a base of this architecture.

    `type_name` is that of all matrices; Q8_0 needs rows of 32 values, so that a B of lower rank
    falls back to F16.
    """

    adapter: Adapter
    architecture: Architecture
    type_name: str
    encoder: Encoder

    @cached_property
    def alpha(self) -> float:
        """alpha of the file: the one that most pairs need, as scale x rank."""
        wanted = Counter(pair.scale * pair.rank for pair in self.adapter.pairs.values())
        return wanted.most_common(1)[0][0]

    @cached_property
    def factors(self) -> list[_Factor]:
        """All tensors in the file's order, each A before its B."""
        names = {weight: gguf_name(self.architecture, weight) for weight in self.adapter.pairs}
        ordered = sorted(names, key=lambda weight: file_order(names[weight]))
        return [
            self._factor(weight, names[weight], is_b)
            for weight in ordered
            for is_b in (False, True)
        ]

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in (factor.shape for factor in self.factors))

    @property
    def bytes(self) -> int:
        """Of the tensors; the header takes a few thousand more."""
        return sum(encoded_bytes(factor.shape, factor.type) for factor in self.factors)

    @property
    def types(self) -> dict[str, int]:
        return dict(Counter(factor.type.name for factor in self.factors))

    @property
    def fallbacks(self) -> list[str]:
        return [f"{one.name} ({one.type.name})" for one in self.factors if one.fallback]

    def read(self, factor: _Factor) -> np.ndarray:
        """float32 (rows, columns) of a factor: permuted, transposed and scaled as the file needs.

        Raises InputError for a value that is not finite, or beyond what the type holds.
        """
        pair = self.adapter.pairs[factor.weight]
        values = read_tensor(pair.b if factor.is_b else pair.a).float().numpy()
        if factor.is_b:
            values = self._permuted(factor.weight, values) * self._missing(pair)
        elif pair.transposed:
            values = np.ascontiguousarray(values.T)
        self._require_held(factor, values)
        return values

    def _factor(self, weight: str, name: str, is_b: bool) -> _Factor:
        pair = self.adapter.pairs[weight]
        shape = pair.b.shape if is_b else pair.a.shape[:: -1 if pair.transposed else 1]
        wanted = quantization(self.type_name).default
        block, _ = gguf.GGML_QUANT_SIZES[wanted]
        found = wanted if shape[1] % block == 0 else Type.F16
        suffix = "lora_b" if is_b else "lora_a"
        return _Factor(f"{name}.{suffix}", shape, found, found != wanted, weight, is_b)

    def _permuted(self, weight: str, rows: np.ndarray) -> np.ndarray:
        order = row_order(self.architecture, gguf_name(self.architecture, weight))
        if order is None:
            return rows
        return rows.reshape(-1, len(order), rows.shape[1])[:, order].reshape(rows.shape)

    def _missing(self, pair: Pair) -> np.float32:
        """What B must be multiplied by, since llama.cpp will take alpha / rank: 1 for most."""
        return np.float32(pair.scale * pair.rank / self.alpha)

    def _require_held(self, factor: _Factor, values: np.ndarray) -> None:
        largest, limit = largest_value(values, factor.type)
        if not largest <= limit:  # also true for NaN
            raise InputError(
                f"{self.adapter.folder}: {factor.name} holds {largest}",
                f"{factor.type.name} ends at {limit:.3g}: training diverged, or BF16 is needed",
                "try --adapter-type BF16; if that fails too, train with a smaller learning rate",
            )


def require_alone(adapter: Adapter, base: Checkpoint) -> None:
    """InputError, by name, for all that llama.cpp could not put on `base` as B A."""
    found = _beyond_lora(adapter, base)
    if found:
        raise InputError(
            f"{adapter.folder}: cannot become an adapter file, it has {found[0]}",
            "llama.cpp adds B A x to a weight of the base and can do nothing else",
            "merge it on the way instead: the same command without --lora-as adapter",
        )


def _beyond_lora(adapter: Adapter, base: Checkpoint) -> list[str]:
    pairs = adapter.pairs
    norms = [name for name, pair in pairs.items() if pair.magnitude]
    shared = [name for name in (EMBEDDING, OUTPUT) if base.tied and name in pairs]
    return [
        *(f"{key} in adapter_config.json" for key in needs_peft(adapter.config)),
        *(f"learned norms of rows (DoRA, {name})" for name in norms),
        *(f"{name} of its own (modules_to_save)" for name in _replaced(adapter, base)),
        *(f"retrained tokens ({name})" for name in adapter.tokens),
        *(f"a change of {name}, which the base ties to another" for name in shared),
        *([] if pairs else ["no pair of LoRA matrices"]),
    ]


def _replaced(adapter: Adapter, base: Checkpoint) -> list[str]:
    """Weights of its own that are not the base's: peft saves an embedding beside its LoRA."""
    return [
        name
        for name, info in adapter.replaced.items()
        if name not in base.tensors
        or info.shape != base.tensors[name].shape
        or not read_tensor(info).float().equal(base.read(name).float())
    ]


def write_adapter(
    plan: AdapterFile, output: Path, name: str, template: str | None = None
) -> ConversionReport:
    """Writes the file tensor by tensor; what was written.

    `template` is the chat template that it was trained with: our own chat and comparison ask with
    it, whatever the base's file carries; llama.cpp does not look for it there. A file that is there
    is written over; a failed one is left for the caller to remove.
    """
    started = time.perf_counter()
    writer = gguf.GGUFWriter(None, plan.architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(_ALPHA, plan.alpha)
    writer.add_name(name)
    if template:
        writer.add_chat_template(template)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(quantization(plan.type_name).file_type)
    for one in plan.factors:
        size = encoded_bytes(one.shape, one.type)
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), size, raw_dtype=one.type)
    writer.write_header_to_file(output)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in plan.factors:
        plan.encoder.prepare(one.type)
        writer.write_tensor_data(plan.encoder.encode(plan.read(one), one.type))
    writer.close()
    _log.info("%s: %d pairs", output.name, len(plan.adapter.pairs))
    return ConversionReport(
        output.stat().st_size,
        plan.parameters,
        plan.types,
        plan.fallbacks,
        time.perf_counter() - started,
    )
