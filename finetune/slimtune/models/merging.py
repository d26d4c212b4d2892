"""A LoRA adapter merged into its base: W + (B @ A) * scale, tensor by tensor.

Sums are made in float32 and rounded once, as peft's merge does in a loaded model, so the result is
the same to the bit; but only a few rows are ever in memory, whatever the size of the model.
"""

from dataclasses import dataclass
from pathlib import Path

from slimtune.models.checkpoints import Checkpoint, CheckpointWriter
from slimtune.models.merged import MergedCheckpoint, require_pair


@dataclass(frozen=True)
class MergeReport:
    """`changed` weights differ from the base; not `streamed`: peft did it, the model in memory."""

    changed: int
    tensors: int
    parameters: int
    bytes: int
    streamed: bool


def merge(base: Path, adapter: Path, output: Path) -> MergeReport:
    """Writes base + adapter to `output`: an ordinary model folder with the base's shards and types.

    Streamed are LoRA, rsLoRA, DoRA, modules_to_save, LoRA on embedding and output layer, added and
    retrained tokens; what peft can do beyond them is merged by peft with the model in memory.
    Tokenizer and chat template come from the adapter folder where it has them. Raises InputError
    for a quantised base, an adapter of another base, an adapter tensor that nothing uses, and
    weights that are not finite; QualityError where the model merged by peft does not answer as base
    and adapter did.
    """
    source = require_pair(base, adapter)
    if source.streams:
        _stream(source, output)
    else:
        # Imported here: transformers and peft alone weigh more than a streamed merge (170 MB).
        from slimtune.models.merging_in_memory import merge_in_memory

        merge_in_memory(source, source.lora, output)
    source.write_companions(output)
    merged = Checkpoint(output)
    return MergeReport(
        changed=len(source.changed),
        tensors=len(merged.tensors),
        parameters=merged.parameters,
        bytes=merged.bytes,
        streamed=source.streams,
    )


def _stream(source: MergedCheckpoint, output: Path) -> None:
    spec = {name: (info.dtype, info.shape) for name, info in source.tensors.items()}
    with CheckpointWriter(output, spec, files=source.files) as writer:
        for name in source.tensors:
            for start, rows in source.rows(name):
                writer.write(name, rows, start)
