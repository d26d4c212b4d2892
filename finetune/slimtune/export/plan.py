"""What a conversion will do, as a value: source, type and size of every tensor, from headers.

The source is a model folder, or a base and an adapter that are merged on the fly.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from slimtune.config import GenerationSection
from slimtune.errors import InputError
from slimtune.export import architecture
from slimtune.export.architecture import Architecture
from slimtune.export.budget import Allocation
from slimtune.export.ggml import Encoder, find_encoder
from slimtune.export.imatrix import Importance, squares_of
from slimtune.export.quant_types import (
    K_QUANTS,
    Choice,
    choose_types,
    encoded_bytes,
    mostly,
    quantization,
)
from slimtune.export.tensors import file_order
from slimtune.export.vocabulary import Vocabulary
from slimtune.models.merging import MergedCheckpoint
from slimtune.models.origin import say_if_unknown
from slimtune.models.weights import EMBEDDING, Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_METADATA_BYTES = 4096
_TABLE_BYTES = 100  # a tensor's name, shape, type and offset, and its padding


@dataclass(frozen=True)
class Encoding:
    """How values become bytes, whatever the type.

    `through_f16` rounds matrices to F16 first, as llama.cpp's converter with llama-quantize does.
    """

    encoder: Encoder = field(default_factory=find_encoder)
    importance: Importance | None = None
    through_f16: bool = False


@dataclass(frozen=True)
class GgufPlan:
    """One file to be written: weights from `checkpoint`, all beside them from `folder`.

    `source` maps GGUF names to Hugging Face names.
    """

    folder: Path
    checkpoint: Checkpoint
    architecture: Architecture
    vocabulary: Vocabulary
    source: dict[str, str]
    quantization: str
    encoding: Encoding
    template: str | None = None  # the chat template of this export, in jinja
    generation: GenerationSection = GenerationSection()  # what servers choose answers by
    allocation: Allocation | None = None  # types of the matrices in place of `quantization`'s
    encoded: Mapping[str, np.ndarray] = field(default_factory=dict)  # (rows, bytes), made already

    @cached_property
    def computed(self) -> dict[str, np.ndarray]:
        """Tensors that no checkpoint stores: Llama-3's divisors of the rotation frequencies."""
        if self.architecture.rope.kind != "llama3":
            return {}
        return {
            architecture.FACTORS: architecture.factors(
                self.architecture.rope, self.architecture.shape.head_dim
            )
        }

    @cached_property
    def tensors(self) -> list[str]:
        """GGUF names in file order."""
        return sorted([*self.source, *self.computed], key=file_order)

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """The type of each tensor, as llama.cpp chooses it, or as it was allocated."""
        if self.allocation is not None:
            chosen = self.allocation.options
            return {n: Choice(chosen[n].type if n in chosen else Type.F32) for n in self.tensors}
        library = self.encoding.encoder.k_quants
        return choose_types(
            {name: self.shape(name) for name in self.tensors},
            self.quantization,
            seventy_billion=self.architecture.seventy_billion,
            k_quants=library or quantization(self.quantization).default in K_QUANTS,
            importance=self.encoding.importance is not None,
        )

    @property
    def needs_tool(self) -> bool:
        """Whether this machine has no encoder for a type, so that llama-quantize has to do it."""
        if self.encoding.encoder.k_quants or self.allocation is not None:
            return False
        k_quants = any(choice.type in K_QUANTS for choice in self.choices.values())
        return k_quants or self.encoding.importance is not None

    @property
    def file_type(self) -> LlamaFileType:
        """What the file calls itself: the named type, or the one that takes most of its bytes."""
        if self.allocation is None:
            return quantization(self.quantization).file_type
        bytes_of = Counter()
        for option in self.allocation.options.values():
            bytes_of[option.type] += option.bytes
        return mostly(bytes_of)

    def is_matrix(self, name: str) -> bool:
        """Whether a tensor's type is a choice; vectors and norms are F32."""
        return len(self.shape(name)) > 1 and not name.endswith("_norm.weight")

    def column_weights(self, name: str) -> np.ndarray | None:
        """What the encoder minimises by: a weight for each column of a matrix, float32.

        Types that were allocated take those of the loss itself, where it was measured: at the bytes
        of Q4_0 stories260K then loses 15 % less than with the mean squares of the inputs, which
        llama.cpp takes and named types get.
        """
        importance = self.encoding.importance
        if importance is None:
            return None
        if self.allocation is not None and importance.sensitivity:
            return importance.cost_of(name, self.shape(name)).column_weights
        return importance.of(name, self.shape(name)[1])

    def feedback(self, name: str) -> np.ndarray | None:
        """How columns make up for those before them, None where they do not: in named types, which
        are what llama.cpp makes of them, and where it was not measured.
        """
        importance = self.encoding.importance
        if self.allocation is None or importance is None or not importance.sensitivity:
            return None
        found = importance.cost_of(name, self.shape(name)).feedback
        return None if found is None else squares_of(found)

    @property
    def parameters(self) -> int:
        return sum(math.prod(self.shape(name)) for name in self.source)

    @property
    def bytes(self) -> int:
        """Predicted file size, to a few kilobytes: tensors, tokens, template, other metadata."""
        tensors = sum(
            encoded_bytes(self.shape(name), choice.type) for name, choice in self.choices.items()
        )
        tokens = sum(len(token) + 16 for token in self.vocabulary.tokens)
        text = len((self.template or "").encode())
        return tensors + tokens + text + _TABLE_BYTES * len(self.choices) + _METADATA_BYTES

    @property
    def fallbacks(self) -> list[str]:
        """`tensor (type)` of every tensor whose row length forced another type on it."""
        return [f"{n} ({c.type.name})" for n, c in self.choices.items() if c.fallback]

    @property
    def types(self) -> dict[str, int]:
        """Type name -> number of tensors."""
        return dict(Counter(choice.type.name for choice in self.choices.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.computed:
            return self.computed[name].shape
        return self.checkpoint.tensors[self.source[name]].shape


@dataclass(frozen=True)
class ModelSource:
    """Weights from `checkpoint`; config, tokenizer and template from `folder`.

    `adapter` is put on the model in memory, by peft: what an adapter file is compared with.
    """

    folder: Path
    checkpoint: Checkpoint
    adapter: Path | None = None


def as_source(model: "Path | str | ModelSource") -> ModelSource:
    """A folder as a source, a source as it is."""
    return model if isinstance(model, ModelSource) else ModelSource(Path(model), Checkpoint(model))


@contextmanager
def open_source(model: Path, adapter: Path | None = None) -> Iterator[ModelSource]:
    """The model of a folder; with `adapter` the merged one, of which only companions are written.

    Raises InputError for an adapter that cannot be merged row by row.
    """
    if adapter is None:
        yield ModelSource(model, Checkpoint(model))
        return
    merged = MergedCheckpoint(model, adapter)
    if not merged.streams:
        raise InputError(
            f"{adapter}: cannot be merged while it is converted",
            "peft has to merge this kind of adapter with the model in memory",
            f"python finetune/evaluate_model.py --base-model {model} --lora-model {adapter} "
            "--merge, then convert the merged folder",
        )
    say_if_unknown(merged.lora.folder, model, merged.lora.config)
    with TemporaryDirectory() as temporary:
        # A GGUF says what the folder is called: the name that --merge would have given it.
        folder = Path(temporary) / "merged_model"
        merged.write_companions(folder)
        yield ModelSource(folder, merged)


def load_source(source: ModelSource, dtype: str = "float32") -> "PreTrainedModel":
    """The model in memory, in transformers; a merged one has the very bits the file is made of."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from slimtune.models import loading
    from slimtune.models.compute import DTYPES, Compute

    if not isinstance(source.checkpoint, MergedCheckpoint):
        compute = Compute.choose("cpu", dtype)
        return loading.load_model(source.folder, compute, adapter=source.adapter)
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(
        config, dtype=DTYPES[dtype], trust_remote_code=False
    ).eval()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            stored = name if name in source.checkpoint.tensors else EMBEDDING  # a tied output layer
            weight.copy_(source.checkpoint.read(stored))
    return model
