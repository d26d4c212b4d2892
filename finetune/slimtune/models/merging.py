"""A LoRA adapter merged into its base: W + (B @ A) * scale, tensor by tensor.

Sums are made in float32 and rounded once, as peft's merge does in a loaded model, so the result is
the same to the bit; but only a few rows are ever in memory, whatever the size of the model.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model_state_dict

from slimtune.console import InputError, QualityError
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
from slimtune.models.loading import DTYPES, load

_log = logging.getLogger(__name__)
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
    checkpoint, lora = Checkpoint(base), Adapter(adapter)
    checkpoint.require_full_precision("merge an adapter into")
    lora.require_base(checkpoint)
    if lora.plain:
        _stream(checkpoint, lora, output)
    else:
        _merge_in_memory(checkpoint, lora, output)
    _copy_beside(checkpoint, lora, output)
    merged = Checkpoint(output)
    return MergeReport(
        changed=len(lora.pairs),
        tensors=len(merged.tensors),
        parameters=merged.parameters,
        bytes=merged.bytes,
        streamed=lora.plain,
    )


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
                    rows = (rows.float() + delta).to(info.dtype)
                _require_finite(rows, name, checkpoint, lora)
                writer.write(name, rows, start)


def _merge_in_memory(checkpoint: Checkpoint, lora: Adapter, output: Path) -> None:
    _log.warning(
        "%s holds more than plain LoRA: peft merges it with the whole model in memory (%.1f GB)",
        lora.folder,
        checkpoint.bytes / 1e9,
    )
    widest = max(checkpoint.tensors.values(), key=lambda info: info.nbytes).dtype
    names = {dtype: name for name, dtype in DTYPES.items()}
    adapted = load(checkpoint.folder, adapter=lora.folder, device="cpu", dtype=names[widest])
    unused = sorted(lora.tensors.keys() - get_peft_model_state_dict(adapted).keys())
    if unused:
        raise InputError(
            f"{lora.folder}: nothing in {checkpoint.folder} uses {unused[0]}",
            f"{len(unused)} of {len(lora.tensors)} adapter tensors have no place in this model",
            f"give the model it was trained on as --base-model: {lora.base}",
        )
    expected = _answer(adapted)
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.config.tie_word_embeddings = (
        merged.get_input_embeddings().weight.data_ptr()
        == merged.get_output_embeddings().weight.data_ptr()
    )
    merged.save_pretrained(output)
    _require_same(expected, _answer(load(output, device="cpu", dtype=names[widest])), lora)


@torch.inference_mode()
def _answer(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.arange(3, 35)[None] % model.config.vocab_size).logits.float()


def _require_same(expected: torch.Tensor, found: torch.Tensor, lora: Adapter) -> None:
    """16-bit rounding moves logits by about 1 %; a weight that was tied and is not, by far more."""
    error = ((found - expected).norm() / expected.norm()).item()
    if not error < 0.05:
        raise QualityError(
            f"{lora.folder}: the merged model does not answer as base and adapter did",
            f"its logits differ by {error:.1%}",
            "keep base and adapter apart, or train without modules_to_save and embedding LoRA",
        )


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
