"""What a conversion will do, as a value: source, type and size of every tensor, from headers."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from slimtune.export.architecture import Architecture
from slimtune.export.quant_types import Choice, encoded_bytes
from slimtune.export.vocabulary import Vocabulary
from slimtune.models.checkpoints import Checkpoint

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
