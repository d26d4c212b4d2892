"""What cannot be merged row by row, such as a base that PiSSA moved: peft does it.

The whole model is in memory. The folder written is loaded back and compared, because peft 0.21
changes a tied embedding together with the output layer, and saves a head of its own as tied.
"""

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from slimtune.errors import InputError, QualityError
from slimtune.models.adapters import Adapter
from slimtune.models.attaching import attach
from slimtune.models.compute import DTYPES, Compute
from slimtune.models.loading import load_model
from slimtune.models.merge_proof import require_samples, sampled
from slimtune.models.weights import EMBEDDING, Checkpoint

_log = logging.getLogger(__name__)


def merge_in_memory(checkpoint: Checkpoint, lora: Adapter, output: Path) -> None:
    """Writes weights and config of base + adapter, merged by peft, and proves the result.

    Raises InputError for an adapter that peft cannot load or merge; QualityError where the merged
    folder has other weights than base and adapter, or does not answer as they did.
    """
    _log.warning(
        "%s holds more than plain LoRA: peft merges it with the whole model in memory (%.1f GB)",
        lora.folder,
        checkpoint.bytes / 1e9,
    )
    widest = max(checkpoint.tensors.values(), key=lambda info: info.nbytes).dtype
    names = {dtype: name for name, dtype in DTYPES.items()}
    compute = Compute.choose("cpu", names[widest])
    model = load_model(checkpoint.folder, compute)
    if EMBEDDING in lora.pairs and not (lora.tokens or lora.config.get("ensure_weight_tying")):
        _untie(model)
    adapted = attach(model, lora)
    expected, weights = _answer(adapted), sampled(adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{lora.folder}: peft cannot merge this adapter",
            str(error).splitlines()[0],
            "keep base and adapter apart in the program that trained it",
        ) from error
    merged.config.tie_word_embeddings = (
        merged.get_input_embeddings().weight.data_ptr()
        == merged.get_output_embeddings().weight.data_ptr()
    )
    merged.save_pretrained(output)
    require_samples(weights, Checkpoint(output), lora)
    _require_same(expected, _answer(load_model(output, compute)), lora)


def _untie(model: PreTrainedModel) -> None:
    """An output layer of its own, as forward passes have it: peft's merge would change both."""
    output = model.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach().clone())
    model.config.tie_word_embeddings = False


@torch.inference_mode()
def _answer(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.arange(3, 35)[None] % model.config.vocab_size).logits.float()


def _require_same(expected: torch.Tensor, found: torch.Tensor, lora: Adapter) -> None:
    """The weights have been compared one by one; this finds a config that does not fit them.

    16-bit sums through 30 layers moved SmolLM2's logits by 14 %; another model's are off by 140 %.
    """
    error = ((found - expected).norm() / expected.norm()).item()
    if not error < 0.5:
        raise QualityError(
            f"{lora.folder}: the merged model does not answer as base and adapter did",
            f"its logits differ by {error:.1%}",
            "keep base and adapter apart, or train without modules_to_save and embedding LoRA",
        )
