"""What a training run would take, in words for --dry-run: parameters, memory, and if it fits."""

from typing import Any

from slimtune.config import Config, Training
from slimtune.models import memory
from slimtune.models.checkpoints import EMBEDDING, Checkpoint
from slimtune.models.hub import resolve
from slimtune.models.loading import choose_device, choose_dtype
from slimtune.training.lora import require_targets


def lora(base: str, config: Config) -> dict[str, str]:
    """Trainable share and peak memory of a LoRA run on `base`, against what this machine has."""
    checkpoint = Checkpoint(resolve(base))
    shapes, shape = checkpoint.config, memory.Shape.of(checkpoint.config)
    matrices = [name for name, sizes in checkpoint.shapes.items() if len(sizes) == 2]
    require_targets(config.lora, [n.removesuffix(".weight") for n in matrices if n != EMBEDDING])
    targets = config.lora.target_modules
    trainable = shape.adapter_parameters(config.lora.rank, targets)
    needed = memory.estimate(
        shapes,
        "lora",
        itemsize=choose_dtype(config.model.device, config.model.dtype).itemsize,
        quantization=config.model.quantization,
        rank=config.lora.rank,
        target_modules=targets,
        dropout=config.lora.dropout,
        **_batch(config.training),
    )
    return {
        "trainable": f"{trainable:,} of {shape.parameters:,} parameters",
        "memory": _verdict(needed, config),
    }


def full(model: str, config: Config) -> dict[str, str]:
    """Peak memory of training all weights of `model` (in float32, as distillation does)."""
    shapes = Checkpoint(resolve(model)).config
    needed = memory.estimate(shapes, "full", itemsize=4, **_batch(config.training))
    return {
        "trainable": f"all {memory.Shape.of(shapes).parameters:,} parameters",
        "memory": _verdict(needed, config),
    }


def _batch(training: Training) -> dict[str, Any]:
    return {
        "batch_size": training.batch_size,
        "max_length": training.max_length,
        "activation_checkpointing": training.activation_checkpointing,
    }


def _verdict(needed: memory.Estimate, config: Config) -> str:
    device = choose_device(config.model.device).type
    verdict = memory.verdict(needed, memory.available_memory(device))
    return verdict.removeprefix("memory: ")
