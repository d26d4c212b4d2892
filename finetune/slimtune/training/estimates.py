"""What a training run would take, before anything is loaded: memory, largest batch, steps.

Parameters and bytes come from the shapes in config.json, tokens from the rows: the largest batch
that can come up is the longest rows together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimtune.config import Config
from slimtune.console import processes
from slimtune.models import memory
from slimtune.models.compute import Compute
from slimtune.models.folders import local_folder
from slimtune.models.weights import EMBEDDING, Checkpoint
from slimtune.training import sharding, streamable
from slimtune.training.attention import training_compute
from slimtune.training.batches import Sample, encode_text
from slimtune.training.dataset import Dataset
from slimtune.training.lora import require_targets

_MOST = 1 << 12  # rows; more in one step than anybody asks for
# Bytes for each parameter of a student that learns through the types of a file: what the bytes
# stand for (4), the codes (1), the bytes now and before training, and the ends of their scales.
_OF_A_FILE = 7


@dataclass(frozen=True)
class Run:
    """A model to train and the lengths of its rows, the longest first."""

    shapes: dict[str, Any]
    recipe: memory.Recipe
    lengths: Sequence[int]
    extra: int = 0  # bytes of whatever else is in memory: a teacher
    shares: int = 1  # processes that hold the weights together
    section: str = "training"  # of the settings: whose learning rate and epochs it takes
    through_a_file: bool = False  # multiplies with what a quantised file would hold
    base: Path | None = None  # the folder of the weights that may be streamed; None: they may not

    @property
    def streams(self) -> bool:
        """Whether the layers may come from their files one after another."""
        return self.base is not None

    def needs(self, rows: int) -> memory.MemoryEstimate:
        """Peak memory with `rows` rows a step: with the longest ones."""
        found = memory.training(self.shapes, self.recipe, sum(self.lengths[:rows]))
        if self.shares > 1:
            found = self._in_parts(found)
        return replace(found, weights=found.weights + self.extra)

    def _in_parts(self, found: memory.MemoryEstimate) -> memory.MemoryEstimate:
        """A part of every weight and of what learns with it; lent two layers, embedding and head.

        Within 8 % of two CPU processes at two sizes, but for the first one where all weights
        learn: it puts checkpoints together, which takes room for one in RAM.
        """
        shape = memory.ModelShape.of(self.shapes)
        resting = (1 - 2 / shape.layers) * shape.linear_parameters / shape.parameters
        parts = {"weights": round(found.weights * (1 / self.shares + 1 - resting))}
        if self.recipe.trained is None:
            parts["gradients"] = found.gradients // self.shares
            parts["optimizer"] = found.optimizer // self.shares
        return replace(found, **parts)

    @property
    def trained(self) -> str:
        whole = memory.ModelShape.of(self.shapes).parameters
        if self.recipe.trained is None:
            return f"all {whole:,} parameters"
        total = whole + self.recipe.trained
        return (
            f"{self.recipe.trained:,} of {total:,} parameters ({self.recipe.trained / total:.2%})"
        )


def adapter_run(config: Config, base: str, samples: Sequence[Sample]) -> Run:
    """A LoRA run on `base`; raises SettingsError for target modules that it lacks."""
    checkpoint, lora = Checkpoint(local_folder(base)), config.lora
    matrices = [name for name, sizes in checkpoint.shapes.items() if len(sizes) == 2]
    require_targets(lora, [n.removesuffix(".weight") for n in matrices if n != EMBEDDING])
    shape = memory.ModelShape.of(checkpoint.config)
    trained = shape.adapter_parameters(lora.rank, lora.target_modules)
    for name in lora.modules_to_save:
        trained += sum(
            math.prod(sizes)
            for tensor, sizes in checkpoint.shapes.items()
            if f".{tensor}".rsplit(".", 1)[0].endswith(f".{name}")
        )
    quantization = config.model.quantization
    run = _run(config, checkpoint, samples, trained, quantization, lora.dropout)
    streams = streamable.possible(config, checkpoint.config)
    return replace(run, base=checkpoint.folder) if streams else run


def whole_run(config: Config, model: str, samples: Sequence[Sample]) -> Run:
    """A run that trains all weights, as `--method full` and distillation do."""
    return _run(config, Checkpoint(local_folder(model)), samples)


def student_run(config: Config, student: str, dataset: Dataset, text: Sequence[str]) -> Run:
    """A run of distillation: rows and passages; an online teacher's weights are there as well."""
    settings = config.distillation
    passages = encode_text(text, dataset.tokenizer, config.training.max_length)
    samples = [*dataset.train, *passages]
    if settings.student == "lora":
        unrounded = config.model.model_copy(update={"quantization": "none"})
        plain = config.model_copy(update={"model": unrounded})
        run = adapter_run(plain, student, samples)
    else:
        run = whole_run(config, student, samples)
    run = replace(run, section="distillation", base=None)
    if settings.quantised_student is not None:
        held = _OF_A_FILE * memory.ModelShape.of(run.shapes).parameters
        run = replace(run, through_a_file=True, extra=held)
    if settings.mode != "online":
        return run
    shapes = Checkpoint(local_folder(settings.teacher_model)).config
    compute = Compute.of(config.model).keeping(settings.teacher_quantization).on(shapes)
    teacher = memory.ModelShape.of(shapes)
    held = memory.weight_bytes(teacher, compute.dtype.itemsize, compute.quantization)
    return replace(run, extra=run.extra + held)


def _run(
    config: Config,
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    trained: int | None = None,
    quantization: str = "none",
    dropout: float = 0.0,
) -> Run:
    settings = config.training
    compute = training_compute(config.model).keeping(quantization).on(checkpoint.config)
    recipe = memory.Recipe(
        trained=trained,
        itemsize=compute.dtype.itemsize,
        quantization=quantization,
        dropout=dropout,
        activation_checkpointing=settings.activation_checkpointing is True,  # auto: not at first
        optimizer=settings.optimizer,
        device=compute.device.type,
    )
    lengths = sorted((len(sample.input_ids) for sample in samples), reverse=True)
    return Run(checkpoint.config, recipe, lengths, shares=sharding.weight_parts())


def largest_batch(run: Run, available: int) -> int:
    """The most rows a step that fit into `available` bytes with a tenth in reserve; 0: none."""
    low, high = 0, min(_MOST, len(run.lengths))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if memory.fits(run.needs(middle), available) else (low, middle - 1)
        )
    return low


def estimate_lines(config: Config, run: Run) -> dict[str, str]:
    """The lines of --dry-run about a run whose settings are `automatic.settled`."""
    available = memory.available_memory(run.recipe.device)
    most = largest_batch(run, available)
    settings = config.training
    rows, accumulated = settings.rows, settings.gradient_accumulation_steps
    epochs = getattr(config, run.section).epochs
    updates = _updates(len(run.lengths), rows * accumulated, epochs)
    return {
        "trainable": run.trained,
        "steps": f"{updates:,} of {rows} x {accumulated} rows",
        "memory": f"{memory.fit_verdict(run.needs(rows), available)} (on {run.recipe.device})",
        "largest batch that fits": "all rows" if most == len(run.lengths) else f"{most} rows",
    }


def _updates(samples: int, rows: int, epochs: float) -> int:
    return math.ceil(max(1, math.ceil(samples / (rows * processes()))) * epochs)
