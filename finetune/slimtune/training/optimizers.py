"""Optimizers and schedules by name, and LoRA+: the B matrices learn faster than the A matrices."""

from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments

from slimtune.config import Training
from slimtune.models.loading import require_bitsandbytes

# What transformers calls them where its name is another one. Fused: an update is one kernel.
_NAMES = {"adamw_torch": "adamw_torch_fused"}
_LOWEST = 0.1  # of the rate, where cosine_with_min_lr ends
_DECAY = 5  # warmup_stable_decay falls in one part of so many


def arguments(settings: Training, steps: int) -> dict[str, Any]:
    """Fields of TrainingArguments for optimizer and schedule of a run of `steps` updates.

    Raises ResourceError where the optimizer needs bitsandbytes and it cannot be imported.
    """
    require_package(settings)
    schedules = {
        "cosine_with_min_lr": {"min_lr_rate": _LOWEST},
        "warmup_stable_decay": {"num_decay_steps": max(1, steps // _DECAY)},
    }
    return {
        "optim": _NAMES.get(settings.optimizer, settings.optimizer),
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": settings.lr_scheduler,
        "lr_scheduler_kwargs": schedules.get(settings.lr_scheduler, {}),
    }


def require_package(settings: Training) -> None:
    """ResourceError where the optimizer needs bitsandbytes and it cannot be imported."""
    if settings.optimizer_of_bitsandbytes:
        require_bitsandbytes(f"training.optimizer: {settings.optimizer}")


def loraplus(model: PeftModel, chosen: TrainingArguments, ratio: float) -> torch.optim.Optimizer:
    """The chosen optimizer, its steps of B `ratio` times those of A (LoRA+, arXiv:2402.12354).

    B starts at zero and A does not, so that one rate for both is too small for B at any width.
    """
    kind, options = Trainer.get_optimizer_cls_and_kwargs(chosen, model)
    return create_loraplus_optimizer(
        model,
        kind,
        loraplus_lr_ratio=ratio,
        loraplus_lr_embedding=options["lr"],
        loraplus_weight_decay=chosen.weight_decay,
        **options,
    )
