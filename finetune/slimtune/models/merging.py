"""A LoRA adapter merged into its base: W + (B @ A) * scale, tensor by tensor.

Sums are made in float32 and rounded once, as peft's merge does in a loaded model, so the result is
the same to the bit; but only a few rows are ever in memory, whatever the size of the model.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from slimtune.console import InputError, SettingsError
from slimtune.models.adapters import Adapter
from slimtune.models.checkpoints import (
    EMBEDDING,
    OUTPUT,
    TOKENIZER_FILES,
    Checkpoint,
    CheckpointWriter,
    copy_companions,
    tensor_rows,
)
from slimtune.models.folders import read_json, write_json

_VOCABULARY = {"tokenizer.model", "vocab.json", "merges.txt"}


@dataclass(frozen=True)
class MergeReport:
    """`changed` weights got a delta; not `streamed`: peft did it with the model in memory."""

    changed: int
    tensors: int
    parameters: int
    bytes: int
    streamed: bool


def merge(base: Path, adapter: Path, output: Path) -> MergeReport:
    """Writes base + adapter to `output`: an ordinary model folder with the base's shards and types.

    Tokenizer and chat template come from the adapter folder where it has them. DoRA, whole modules
    saved beside the adapter, and LoRA on the embedding are merged by peft with the model in memory.
    Raises InputError for a quantised base, an adapter of another base, an adapter tensor that
    nothing uses, and weights that are not finite; QualityError where the model merged by peft does
    not answer as base and adapter did.
    """
    checkpoint, lora = require_pair(base, adapter)
    if lora.plain:
        _stream(checkpoint, lora, output)
    else:
        # Imported here: transformers and peft alone weigh more than a streamed merge (170 MB).
        from slimtune.models.merging_in_memory import merge_in_memory

        merge_in_memory(checkpoint, lora, output)
    _copy_beside(checkpoint, lora, output)
    merged = Checkpoint(output)
    return MergeReport(
        changed=len(lora.pairs),
        tensors=len(merged.tensors),
        parameters=merged.parameters,
        bytes=merged.bytes,
        streamed=lora.plain,
    )


def require_pair(base: Path, adapter: Path | None) -> tuple[Checkpoint, Adapter]:
    """Base and adapter, opened: whether they can be merged, before anything is written.

    Raises what `merge` raises for them, and SettingsError where no adapter is named.
    """
    if adapter is None:
        raise SettingsError(
            "evaluation.lora_model: null, so there is nothing to merge",
            "a merge puts an adapter into its base model",
            "name the adapter with --lora-model",
        )
    checkpoint, lora = Checkpoint(base), Adapter(adapter)
    checkpoint.require_full_precision("merge an adapter into")
    lora.require_base(checkpoint)
    return checkpoint, lora


def _stream(checkpoint: Checkpoint, lora: Adapter, output: Path) -> None:
    infos = dict(checkpoint.tensors)
    if OUTPUT in lora.pairs:
        # A tied output layer with a delta of its own is no longer the embedding: it is written out.
        infos.setdefault(OUTPUT, infos[EMBEDDING])
    spec = {name: (info.dtype, info.shape) for name, info in infos.items()}
    files = {name: info.file.name for name, info in infos.items()}
    with CheckpointWriter(output, spec, files=files) as writer:
        for name, info in infos.items():
            for start, rows in tensor_rows(lora.replaced.get(name, info)):
                rows = rows.to(info.dtype)
                if name in lora.pairs:
                    delta = lora.pairs[name].delta(start, start + len(rows))
                    rows = rows.float().add_(delta).to(info.dtype)
                _require_finite(rows, name, checkpoint, lora)
                writer.write(name, rows, start)


def _require_finite(rows: torch.Tensor, name: str, checkpoint: Checkpoint, lora: Adapter) -> None:
    if not torch.isfinite(rows).all():
        raise InputError(
            f"{name}: not finite after merging {lora.folder} into {checkpoint.folder}",
            "base or adapter hold NaN or infinity, or the sum does not fit the type of the weights",
            "check the training's loss and run it again with a lower learning rate",
        )


def _copy_beside(checkpoint: Checkpoint, lora: Adapter, output: Path) -> None:
    """Base's companions, but the adapter's tokenizer: it knows the template it was trained with."""
    brought = {name for name in TOKENIZER_FILES if (lora.folder / name).is_file()}
    if "tokenizer_config.json" in brought:
        brought |= set(TOKENIZER_FILES) - _VOCABULARY
    written = {"config.json"} if (output / "config.json").is_file() else set()
    copy_companions(checkpoint.folder, output, without=brought | written)
    copy_companions(lora.folder, output, only=TOKENIZER_FILES)
    if OUTPUT in lora.pairs and not written:
        config = read_json(output / "config.json") | {"tie_word_embeddings": False}
        write_json(output / "config.json", config)
