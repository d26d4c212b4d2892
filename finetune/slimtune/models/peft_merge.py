"""What cannot be merged row by row (DoRA, modules_to_save, LoRA on the embedding): peft does it.

The whole model is in memory. The folder written is loaded back and compared, because peft 0.21
changes a tied embedding together with the output layer, and saves a head of its own as tied.
"""

import logging
from pathlib import Path

import torch
from peft import get_peft_model_state_dict

from slimtune.console import InputError, QualityError
from slimtune.models.adapters import Adapter
from slimtune.models.compute import DTYPES, Compute
from slimtune.models.loading import load_model
from slimtune.models.weights import Checkpoint

_log = logging.getLogger(__name__)


def merge_in_memory(checkpoint: Checkpoint, lora: Adapter, output: Path) -> None:
    """Writes weights and config of base + adapter, merged by peft, and proves the result.

    Raises InputError for an adapter tensor that nothing uses; QualityError where the merged folder
    does not answer as base and adapter did.
    """
    _log.warning(
        "%s holds more than plain LoRA: peft merges it with the whole model in memory (%.1f GB)",
        lora.folder,
        checkpoint.bytes / 1e9,
    )
    widest = max(checkpoint.tensors.values(), key=lambda info: info.nbytes).dtype
    names = {dtype: name for name, dtype in DTYPES.items()}
    compute = Compute.choose("cpu", names[widest])
    adapted = load_model(checkpoint.folder, compute, adapter=lora.folder)
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
    _require_same(expected, _answer(load_model(output, compute)), lora)


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
