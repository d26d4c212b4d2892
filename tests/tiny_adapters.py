"""Adapters as a program of somebody else leaves them: made, moved a little and saved by peft."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

BOTH = ["q_proj", "down_proj"]


def loaded(
    base: Path, rows: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """The base; with `rows` its vocabulary has that many."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def trained(
    base: Path,
    folder: Path,
    *,
    rows: int | None = None,
    prepare: Callable[[PreTrainedModel], object] | None = None,
    **lora: object,
) -> Path:
    """An adapter in `folder`, of rank 4 on `BOTH` where `lora` says nothing else."""
    torch.manual_seed(1)
    model = loaded(base, rows)
    if prepare:
        prepare(model)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": BOTH, "task_type": "CAUSAL_LM"} | lora
    adapted = get_peft_model(model, LoraConfig(**settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    adapted.save_pretrained(folder)
    return folder
