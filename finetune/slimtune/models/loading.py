"""One verb pair for models, `load_model` and `save_model`: 4 and 8 bits, adapters, shared weights.

What is loaded is always an ordinary transformers model (or peft's wrapper around one); what is
saved loads again with AutoModelForCausalLM.from_pretrained and no code of ours.
"""

import importlib
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.distributed import DistributedConfig

from slimtune.console import near
from slimtune.errors import InputError, ResourceError
from slimtune.machine.process import return_large_blocks
from slimtune.machine.refusals import refusal_of
from slimtune.models import mixed, tokenizers
from slimtune.models.adapters import Adapter
from slimtune.models.compute import KEPT, Compute
from slimtune.models.family import FAMILIES
from slimtune.models.folders import local_folder
from slimtune.models.streamed import open_streamed
from slimtune.models.weights import Checkpoint, all_finite, not_finite, require_layers
from slimtune.packages import pip_line
from slimtune.settings.flags import less_memory, named

if TYPE_CHECKING:
    from peft import PeftModel

_OF_ADAPTER = re.compile(r"\.(lora_\w+|modules_to_save|trainable_tokens_\w+)\.")

_log = logging.getLogger(__name__)
_explained: set[str] = set()  # reasons that were told: one is enough for all models of a run


def explained(compute: Compute) -> None:
    """The process that started this one has told why it computes so."""
    for dtype in (compute.dtype, torch.bfloat16):  # which of the two depends on the model
        _explained.add(replace(compute, dtype=dtype).explain().partition(": ")[2])


def load_model(
    reference: str | Path, compute: Compute | None = None, *, adapter: Path | None = None
) -> "PreTrainedModel | PeftModel":
    """A model in evaluation mode from a folder or Hub id, with `adapter` on top if one is given.

    Without `compute` it is the hardware's choice. Adapter and weights are checked against each
    other before anything is loaded. Where weights are shared out the processes load together: each
    reads and holds a part of every weight, and they lend them to each other layer by layer; an
    adapter is whole in each. The weights of one that is streamed stay in their files.
    Raises InputError (not a model, weights that do not fit its config or hold NaN, adapter of
    another base) and ResourceError (no GPU, no bitsandbytes, out of memory, Hub out of reach).
    """
    folder = local_folder(reference)
    checkpoint = Checkpoint(folder)
    require_layers(folder, checkpoint.config, checkpoint.tensors)
    if adapter is not None:
        lora = Adapter(adapter)
        lora.require_base(checkpoint)
    compute = (compute or Compute.choose()).on(checkpoint.config)
    if compute.quantized:
        require_bitsandbytes(KEPT[compute.quantization])
    where, _, why = compute.explain().partition(": ")
    _log.info("%s: %s%s", near(folder), where, "" if why in _explained else f": {why}")
    _explained.add(why)
    model = open_streamed(checkpoint, compute) if compute.streamed else _in_memory(folder, compute)
    if compute.mixed and model.config.model_type in FAMILIES:
        (mixed.learn if compute.learns_whole else mixed.prepare)(model)
    if adapter is None:
        return _with_whole_rows(model)
    # With bitsandbytes: two seconds that a plain model need not pay.
    from slimtune.models.attaching import attach

    adapted = attach(model, lora)
    _require_finite(adapter, adapted, of_adapter=True)
    return _with_whole_rows(adapted)


def _in_memory(folder: Path, compute: Compute) -> PreTrainedModel:
    options = {"dtype": compute.weights, **_placed(compute)}
    if compute.attention is not None:
        options["attn_implementation"] = compute.attention
    if compute.quantized:
        options["quantization_config"] = _quantized(compute)
    model = _from_pretrained(folder, options)
    model.generation_config = _ids_alone(model.generation_config)
    if compute.quantization == "nf4":
        _leave_unpacked(model)
    if compute.shares == 1:
        _require_finite(folder, model)
    return model


def _with_whole_rows(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel | PeftModel":
    """The model, whose output layer gets the last hidden states of several rows as a matrix.

    They come as a view with gaps. Of one, torch multiplies each row by a copy of a frozen weight:
    40 rows of SmolLM2 under an adapter, in bfloat16, took 2.2 GB.
    """
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    return model


def _require_finite(folder: Path, model: nn.Module, *, of_adapter: bool = False) -> None:
    """InputError by the name of the first weight with NaN or infinity; of an adapter's own alone
    where the base has been looked at."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or (of_adapter and not _OF_ADAPTER.search(name)):
            continue
        if not all_finite(weight.detach()):
            raise not_finite(folder, name)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    source: Path | None = None,
) -> None:
    """Writes model and tokenizer as an ordinary model folder: safetensors, config, tokenizer files.

    The weights keep the type they have in memory. `source` is the folder the tokenizer came from:
    its tokenizer.model is copied along.
    """
    model.save_pretrained(folder)
    tokenizers.save_tokenizer(tokenizer, folder, source)


def _ids_alone(own: GenerationConfig) -> GenerationConfig:
    """Without what a base's author says of sampling: it would have its say wherever we generate,
    and transformers saves none with a temperature and no do_sample once an id has changed."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(own, name) for name in names})


def _placed(compute: Compute) -> dict[str, object]:
    if compute.shares == 1:
        return {"device_map": {"": compute.device}}
    return_large_blocks()  # else lent weights leave holes larger than the model
    return {"distributed_config": DistributedConfig(fsdp_size=compute.shares)}


def _quantized(compute: Compute) -> BitsAndBytesConfig:
    if compute.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute.products,
    )


def _leave_unpacked(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes 0.50 repacks 4-bit weights that compute in evaluation.

    Packed ones have no backward pass (after the first validation, layers would get no gradient from
    those above them), cannot be packed where a size is no multiple of 32, and are no faster without
    a kernel that it would download.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def require_bitsandbytes(what: str) -> None:
    """ResourceError, before anything is loaded, where the package is missing or broken."""
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a broken CUDA or libstdc++ fails in many ways
        raise ResourceError(
            f"{what}: needs bitsandbytes",
            f"it cannot be imported: {str(error).splitlines()[0]}",
            f"{pip_line('bitsandbytes')}, or leave out --use-quantization and 8-bit optimizers",
        ) from error


def _from_pretrained(folder: Path, options: dict) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{folder}: the model does not fit into memory",
            str(error).splitlines()[0],
            f"{less_memory()}, or compute with {named('model.device')} cpu",
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if refusal_of(error):
            raise
        raise InputError(
            f"{folder}: transformers cannot load this model",
            str(error).splitlines()[0],
            "compare its config.json with the original model's",
        ) from error
    # transformers fills what is missing with random numbers and only warns.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{folder}: {len(missing)} weights missing, first {missing[0]}",
            "its config.json describes them, its safetensors files do not hold them",
            "copy the model again, or run the stage that wrote it again",
        )
    return model
