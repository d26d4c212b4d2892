"""One verb pair for models, `load` and `save`: the type of numbers by hardware, 4 bits, adapters.

What is loaded is always an ordinary transformers model (or peft's wrapper around one); what is
saved loads again with AutoModelForCausalLM.from_pretrained and no code of ours.
"""

import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.distributed import DistributedConfig

from slimtune.console import InputError, ResourceError, SettingsError
from slimtune.machine.process import return_large_blocks
from slimtune.models import tokenizers
from slimtune.models.adapters import Adapter
from slimtune.models.checkpoints import Checkpoint
from slimtune.models.folders import local_folder

if TYPE_CHECKING:
    from peft import PeftModel

_log = logging.getLogger(__name__)

_WEIGHTS = {"nf4": "weights in 4 bits (nf4)", "int8": "weights in 8 bits (int8)"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    reference: str | Path,
    *,
    adapter: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "none",
    attn_implementation: str | None = None,
    shares: int = 1,
) -> "PreTrainedModel | PeftModel":
    """A model in evaluation mode from a folder or Hub id, with `adapter` on top if one is given.

    `device` is auto, cpu or cuda; `dtype` auto, float32, bfloat16 or float16 (what is computed
    with); `quantization` keeps the linear layers in 4 bits (nf4 with double quantisation, QLoRA
    arXiv:2305.14314) or 8 (int8, LLM.int8() arXiv:2208.07339). Adapter and weights are checked
    against each other before anything is loaded. With `shares` above 1 so many processes load
    together: each reads and holds a part of every weight, and they lend them to each other layer
    by layer (FSDP2, arXiv:2304.11277); an adapter is whole in each.
    Raises InputError (not a model, weights that do not fit its config, adapter of another base) and
    ResourceError (no GPU, no bitsandbytes, out of memory, Hub out of reach).
    """
    folder = local_folder(reference)
    checkpoint = Checkpoint(folder)
    if adapter is not None:
        Adapter(adapter).require_base(checkpoint)
    place, numbers = choose_device(device), choose_dtype(device, dtype)
    if quantization != "none":
        require_bitsandbytes(_WEIGHTS[quantization])
    _log.info("%s: %s", folder, explain_compute(device, dtype, quantization))
    options = {"dtype": numbers, **_placed(place, shares)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization != "none":
        options["quantization_config"] = _quantized(quantization, choose_products(device, dtype))
    model = _from_pretrained(folder, options)
    if quantization == "nf4":
        _leave_unpacked(model)
    return model if adapter is None else _with_adapter(model, adapter)


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


def _placed(place: torch.device, shares: int) -> dict[str, object]:
    if shares == 1:
        return {"device_map": {"": place}}
    return_large_blocks()  # else lent weights leave holes larger than the model
    return {"distributed_config": DistributedConfig(fsdp_size=shares)}


def _with_adapter(model: PreTrainedModel, adapter: Path) -> "PeftModel":
    from peft import PeftModel  # with bitsandbytes: two seconds that a plain model need not pay

    return PeftModel.from_pretrained(model, str(adapter))


def choose_device(device: str = "auto") -> torch.device:
    """auto is the GPU where there is one; under `accelerate launch` each process has its own."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(
            "device: cuda, but torch finds no GPU",
            f"torch {torch.__version__} {'has no CUDA' if not torch.version.cuda else 'sees none'}",
            "set device to auto, or install torch's CUDA build and check `nvidia-smi`",
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def choose_dtype(device: str = "auto", dtype: str = "auto") -> torch.dtype:
    """The type of weights and activations: float32 on a CPU, on a GPU bf16, else fp16."""
    if dtype == "float16" and choose_device(device).type == "cpu":
        raise SettingsError(
            "model.dtype: float16 on a CPU",
            "CPUs compute it slowly, and training in it ends in NaN",
            "use --dtype auto, which is float32 on a CPU",
        )
    if dtype != "auto":
        return DTYPES[dtype]
    if choose_device(device).type == "cpu":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def choose_products(device: str = "auto", dtype: str = "auto") -> torch.dtype:
    """What 4-bit layers multiply in; weights and activations around them keep their type.

    bf16 on CPUs with AVX512-BF16: training 82 M parameters took 0.84 of float32's CPU time (0.64
    where MKL multiplies), its loss off by 3e-4 after twelve steps. Without it bf16 is 28 times
    slower.
    """
    numbers = choose_dtype(device, dtype)
    if dtype == "auto" and choose_device(device).type == "cpu":
        from bitsandbytes.functional import has_avx512bf16

        return torch.bfloat16 if has_avx512bf16() else numbers
    return numbers


def explain_compute(device: str = "auto", dtype: str = "auto", quantization: str = "none") -> str:
    """One line: where and in what numbers a model would compute, and why."""
    place, numbers = choose_device(device), choose_dtype(device, dtype)
    name = str(numbers).removeprefix("torch.")
    if dtype != "auto":
        reason = "as set"
    elif place.type == "cpu":
        reason = "16-bit numbers are slow on most CPUs, and less exact"
    else:
        reason = (
            f"{torch.cuda.get_device_name(place)} {'has' if name == 'bfloat16' else 'lacks'} bf16"
        )
    weights = f"{_WEIGHTS[quantization]}, " if quantization != "none" else ""
    if quantization == "nf4" and choose_products(device, dtype) != numbers:
        weights = f"{_WEIGHTS[quantization]} multiplied in bfloat16 (this CPU has AVX512-BF16), "
    where = (
        f"{place.type} (no GPU found)" if (device, place.type) == ("auto", "cpu") else place.type
    )
    return f"{where}, {weights}{name}: {reason}"


def _quantized(quantization: str, products: torch.dtype) -> BitsAndBytesConfig:
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=products,
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
            "pip install -r requirements.txt, or leave out --use-quantization and 8-bit optimizers",
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
            "use --use-quantization, a smaller model, or device cpu",
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
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
