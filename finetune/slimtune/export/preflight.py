"""What a conversion will do, decided and checked from headers alone, before any work."""

import logging
import math
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from slimtune.console import ResourceError
from slimtune.export.architecture import Architecture, map_tensors, read_architecture
from slimtune.export.quant_types import (
    K_QUANTS,
    Choice,
    choose_types,
    encoded_bytes,
    quantization,
)
from slimtune.export.vocabulary import Vocabulary, read_vocabulary
from slimtune.models.checkpoints import Checkpoint
from slimtune.models.llama_library import library

log = logging.getLogger(__name__)

_METADATA_BYTES = 4096
_TABLE_BYTES = 100  # a tensor's name, shape, type and offset, and its padding


@dataclass(frozen=True)
class Plan:
    """What a conversion will do; `source` maps GGUF names to Hugging Face names, in file order."""

    folder: Path
    quantization: str
    checkpoint: Checkpoint
    architecture: Architecture
    vocabulary: Vocabulary
    source: dict[str, str]
    choices: dict[str, Choice]
    numpy_only: bool

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
        template = self.folder / "chat_template.jinja"
        text = template.stat().st_size if template.is_file() else 0
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
        return self.checkpoint.tensors[self.source[name]].shape


def preflight(model_folder: Path | str, quantization_name: str) -> Plan:
    """Checks everything that headers can tell, before any work.

    Raises SettingsError for an unknown type, InputError for a folder that is no convertible model,
    ResourceError where a K-quant is asked for and ggml's library is not there.
    """
    folder = Path(model_folder)
    quantization(quantization_name)
    checkpoint = Checkpoint(folder)
    architecture = read_architecture(folder, checkpoint.config)
    source = map_tensors(folder, architecture, checkpoint.shapes)
    checkpoint.require_full_precision("make a GGUF")
    vocabulary = read_vocabulary(folder, architecture.vocabulary)
    shapes = {name: checkpoint.tensors[hf].shape for name, hf in source.items()}
    numpy_only = not _has_library()
    choices = choose_types(
        shapes,
        quantization_name,
        seventy_billion=architecture.seventy_billion,
        k_quants=not numpy_only,
    )
    if numpy_only and any(choice.type in K_QUANTS for choice in choices.values()):
        raise _no_encoder(quantization_name)
    return Plan(
        folder,
        quantization_name,
        checkpoint,
        architecture,
        vocabulary,
        source,
        choices,
        numpy_only,
    )


def require_disk(plan: Plan, output: Path) -> None:
    """Raises ResourceError if the file will not fit beside `output`."""
    free = shutil.disk_usage(output.parent).free
    if free < plan.bytes:
        raise ResourceError(
            f"{output.parent}: {plan.bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            f"a {plan.quantization} file of this model is that large",
            "free some space, choose another --output-dir, or a smaller type",
        )


def _has_library() -> bool:
    try:
        library()
    except ResourceError as error:
        log.debug("encoding with numpy: %s", error.why)
        return False
    return True


def _no_encoder(name: str) -> ResourceError:
    return ResourceError(
        f"quantization {name}: no encoder for K-quants on this machine",
        "they need ggml's library, which the wheel xllamacpp brings on Linux and macOS",
        "pip install xllamacpp, or --quantization Q8_0 or Q4_0, which need nothing; "
        "or F16 and then llama.cpp's llama-quantize",
    )
