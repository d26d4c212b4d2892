"""A LoRA adapter merged into its base: W + (B @ A) * scale, row by row, as rows are asked for.

Sums are made in float32 and rounded once, as peft's merge does in a loaded model, so the result is
the same to the bit; but only a few rows are ever in memory, whatever the size of the model.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimtune.artifacts.files import write_json
from slimtune.errors import InputError, SettingsError
from slimtune.models.adapters import Adapter
from slimtune.models.headers import TensorInfo, read_bytes, read_tensor
from slimtune.models.weights import (
    EMBEDDING,
    OUTPUT,
    TOKENIZER_FILES,
    Checkpoint,
    CheckpointWriter,
    copy_companions,
)

if TYPE_CHECKING:
    import torch

_VOCABULARY = {"tokenizer.model", "vocab.json", "merges.txt"}


class MergedCheckpoint(Checkpoint):
    """The merged model, row by row: names, shards and types are the base's, shapes may have grown.

    An output layer that was tied to the embedding and no longer equals it is a weight of its own.
    Rows are float32 sums rounded once to the base's type, the bits of peft's own merge. Raises
    InputError for a quantised base, and an adapter that is not LoRA, of another base, or with
    tensors that nothing uses.
    """

    def __init__(self, base: Path | str, adapter: Path | str) -> None:
        super().__init__(base)
        self.lora = Adapter(adapter)
        self.require_full_precision("merge an adapter into")
        self.lora.require_base(self)
        self.lora.require_effect(self)
        self.streams = self.lora.streams(self.tied)
        if self.streams:
            self.lora.require_used()
        self._stored = self.tensors | {
            name: info for name, info in self.lora.replaced.items() if name in self.tensors
        }
        self._untied = self.tied and self._output_differs()
        if self._untied:
            # Written out: a delta, or an embedding that changed alone, parted the two.
            stored = self.tensors[EMBEDDING]
            self._stored[OUTPUT] = self.lora.replaced.get(OUTPUT, stored)
            self.tensors[OUTPUT] = stored
        self.tensors = {name: self._described(name) for name in self.tensors}
        self._require_one_vocabulary()

    @cached_property
    def touched(self) -> list[str]:
        """Names of the weights that the adapter may change: all that it names, or all there are."""
        if not self.streams:
            return list(self.tensors)
        named = self.lora.pairs.keys() | self.lora.replaced.keys() | self.lora.tokens.keys()
        return [name for name in self.tensors if name in named]

    @property
    def merged_config(self) -> dict:
        """The base's config.json with what the merge changes in it."""
        changes: dict[str, object] = {"tie_word_embeddings": False} if self._untied else {}
        rows = self.tensors[EMBEDDING].shape[0]
        if EMBEDDING in self.lora.replaced and rows != self.config.get("vocab_size"):
            changes["vocab_size"] = rows
        return self.config | changes

    @property
    def memory_words(self) -> str:
        """What a merge of the two needs."""
        if self.streams:
            return "about 0.5 GB and the adapter, whatever the size of the model"
        return f"about {self.bytes / 1e9 + 0.5:.1f} GB: peft merges this kind, the model in memory"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> "torch.Tensor":
        dtype = self.tensors[name].dtype
        rows = self.read_unmerged(name, start, stop)
        zeros = rows == 0 if self.keeps_zeros and name.endswith("proj.weight") else None
        for changes in (self.lora.pairs, self.lora.tokens):
            if name in changes:
                rows = changes[name].merge(rows, start).to(dtype)
        if zeros is not None:
            rows[zeros] = 0
        self._require_finite(rows, name)
        return rows

    def read_unmerged(self, name: str, start: int = 0, stop: int | None = None) -> "torch.Tensor":
        """The rows that the adapter adds to: the base's, or those it brings in their place."""
        return read_tensor(self._stored[name], start, stop).to(self.tensors[name].dtype)

    @property
    def keeps_zeros(self) -> bool:
        """A base pruned to zeros (model_pruning.py --sparsity) says so: a merge brings none back.

        The sum then differs from base + adapter at those weights; without it no zero is left.
        """
        return "sparsity" in self.config

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows = self.read(name, start, stop).float().numpy()
        return rows.reshape(len(rows), -1)

    def write_companions(self, folder: Path) -> None:
        """Everything beside the weights: the base's, but the adapter's tokenizer and template."""
        brought = {name for name in TOKENIZER_FILES if (self.lora.folder / name).is_file()}
        if "tokenizer_config.json" in brought:
            brought |= set(TOKENIZER_FILES) - _VOCABULARY
        written = {"config.json"} if (folder / "config.json").is_file() else set()
        copy_companions(self.folder, folder, without=brought | written)
        copy_companions(self.lora.folder, folder, only=TOKENIZER_FILES)
        if not written and self.merged_config != self.config:
            write_json(folder / "config.json", self.merged_config)

    def _described(self, name: str) -> TensorInfo:
        """Where the weight lies in the base, with the shape it will have."""
        base, stored = self.tensors[name], self._stored[name]
        described = replace(base, shape=stored.shape)
        return replace(described, nbytes=described.row_bytes * (stored.shape or (1,))[0])

    def _output_differs(self) -> bool:
        own, new = self.lora.replaced.get(OUTPUT), self.lora.replaced.get(EMBEDDING)
        if OUTPUT in self.lora.pairs:
            return True
        if own and new:
            return not np.array_equal(read_bytes(own), read_bytes(new))
        grown = new is not None and new.shape != self.tensors[EMBEDDING].shape
        return own is not None or EMBEDDING in self.lora.pairs or (new is not None and not grown)

    def _require_one_vocabulary(self) -> None:
        shapes = [self.tensors[n].shape for n in (EMBEDDING, OUTPUT) if n in self.tensors]
        if len(set(shapes)) > 1:
            raise InputError(
                f"{self.lora.folder}: {EMBEDDING} has {shapes[0][0]} rows, {OUTPUT} {shapes[1][0]}",
                "the vocabulary was resized, and only one of the two was saved",
                "save the adapter with save_embedding_layers=True and merge again",
            )

    def _require_finite(self, rows: "torch.Tensor", name: str) -> None:
        if not rows.isfinite().all():
            raise InputError(
                f"{name}: not finite after merging {self.lora.folder} into {self.folder}",
                "base or adapter hold NaN or infinity, or the sum does not fit the type of the "
                "weights",
                "check the training's loss and run it again with a lower learning rate",
            )


def require_adapter_of(base: Path, adapter: Path | None) -> MergedCheckpoint:
    """Base and adapter, opened: whether they can be merged, before anything is written.

    Raises what `MergedCheckpoint` raises for them, and SettingsError where no adapter is named.
    """
    if adapter is None:
        raise SettingsError(
            "evaluation.lora_model: null, so there is nothing to merge",
            "a merge puts an adapter into its base model",
            "name the adapter with --lora-model",
        )
    return MergedCheckpoint(base, adapter)


@dataclass(frozen=True)
class MergeReport:
    """`changed` weights differ from the base; not `streamed`: peft did it, the model in memory."""

    changed: int
    tensors: int
    parameters: int
    bytes: int
    streamed: bool


def merge_adapter(base: Path, adapter: Path, output: Path) -> MergeReport:
    """Writes base + adapter to `output`: an ordinary model folder with the base's shards and types.

    Streamed are LoRA, rsLoRA, DoRA, modules_to_save, LoRA on embedding and output layer, added and
    retrained tokens; what peft can do beyond them is merged by peft with the model in memory.
    Tokenizer and chat template come from the adapter folder where it has them. Raises InputError
    for a quantised base, an adapter of another base, an adapter tensor that nothing uses, and
    weights that are not finite; QualityError where the model merged by peft does not answer as base
    and adapter did, and where a merged weight is not peft's own to the rounding of its type.
    """
    source = require_adapter_of(base, adapter)
    # Imported here: transformers and peft alone weigh more than a streamed merge (170 MB).
    if source.streams:
        _stream(source, output)
        from slimtune.models.merge_proof import require_as_peft

        require_as_peft(source, Checkpoint(output))
    else:
        from slimtune.models.peft_merge import merge_in_memory

        merge_in_memory(source, source.lora, output)
    source.write_companions(output)
    merged = Checkpoint(output)
    changed = [name for name in source.touched if _differs(Checkpoint(base), merged, name)]
    if not changed:
        raise source.lora.without_effect("no weight differs from the base's, rounded to its type")
    return MergeReport(
        changed=len(changed),
        tensors=len(merged.tensors),
        parameters=merged.parameters,
        bytes=merged.bytes,
        streamed=source.streams,
    )


def _differs(base: Checkpoint, merged: Checkpoint, name: str) -> bool:
    """Whether any value is not the base's; an output layer written out was the embedding."""
    stored = name if name in base.tensors else EMBEDDING
    if name not in merged.tensors or base.shapes.get(stored) != merged.tensors[name].shape:
        return True
    pieces = merged.rows(name)
    return any(
        not rows.equal(base.read(stored, start, start + len(rows)).to(rows.dtype))
        for start, rows in pieces
    )


def _stream(source: MergedCheckpoint, output: Path) -> None:
    spec = {name: (info.dtype, info.shape) for name, info in source.tensors.items()}
    with CheckpointWriter(output, spec, files=source.files) as writer:
        for name in source.tensors:
            for start, rows in source.rows(name):
                writer.write(name, rows, start)
