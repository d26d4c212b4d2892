"""From samples to a trained model in one call, `fit`: what the Trainer is told, who looks on.

Batches, checkpoints and failures are the trainer's own (`trainer`, `checkpoints`); here settings
become its arguments, optimizer and schedule among them, and what it logged becomes a `Curve`.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

from slimtune.artifacts.records import command
from slimtune.config import Training
from slimtune.console import (
    decoration,
    first_process,
    near,
    note,
    processes,
    quoted,
    to_paste,
)
from slimtune.models.loading import require_bitsandbytes
from slimtune.training import callbacks, checkpoints, prefixes, sharding
from slimtune.training.batches import Sample
from slimtune.training.callbacks import ProgressShown, Reporting
from slimtune.training.curve import METRICS, Curve, MetricsFile
from slimtune.training.forward import require_exact
from slimtune.training.trainer import SlimTrainer

_log = logging.getLogger(__name__)

_LOGGED_LINES = 40
_PATIENCE = 24 * 3600  # seconds: the first process fills the teacher's cache, the others wait
_MOMENTS = 2  # of AdamW, in float32


def fit(
    model: torch.nn.Module,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    settings: Training,
    folder: Path,
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    section: str = "training",
    chooses: bool = True,
    resume_from: Path | None = None,
    conditions: Mapping[str, str] | None = None,
    trainer_class: type[SlimTrainer] = SlimTrainer,
    **trainer_options: Any,
) -> Curve:
    """Train `model` in place; with validation samples that `chooses` the best checkpoint is what it
    ends with.

    `epochs` and `learning_rate` replace those of the settings, and `section` is where errors say
    that they were set; no setting is `auto` any longer (`automatic.settled`). `folder` holds the
    checkpoints and metrics.jsonl as they grow; `resume_from` is one of them, and it must be resumed
    under the same `conditions`. Raises QualityError at a loss or gradient that is not finite,
    ResourceError without disk space for the checkpoints, and KeyboardInterrupt, after saving, when
    it was asked to stop.
    """
    steps = steps_per_epoch(len(train), settings)
    total = math.ceil(steps * (epochs or settings.epochs))
    arguments = training_arguments(model, settings, folder, steps, bool(validation))
    if not chooses:
        arguments.load_best_model_at_end, arguments.metric_for_best_model = False, None
    for name, value in optimizer_arguments(settings, total).items():
        setattr(arguments, name, value)
    # A resumed run has measured its start already; a second time would cost patience.
    arguments.eval_on_start = bool(validation) and resume_from is None
    arguments.num_train_epochs = epochs or settings.epochs
    arguments.learning_rate = learning_rate or settings.learning_rate
    arguments.logging_steps = max(1, round(steps * arguments.num_train_epochs / _LOGGED_LINES))
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=list(train),
        eval_dataset=list(validation) or None,
        share=not (settings.neftune_alpha or prefixes.draws(model)),
        **trainer_options,
    )
    trainer.section = section
    if sharding.weight_parts() > 1:
        sharding.stored_as_one(model)
    require_exact(model, train)
    if first_process():
        if resume_from is None:
            checkpoints.begin(folder, conditions or {})
        checkpoints.require_space(folder, _checkpoint_bytes(model))
    history = checkpoints.history(resume_from) if resume_from else []
    shown = _watch(trainer, settings, folder, history, chooses and bool(validation))
    model.config.use_cache = False
    started = time.monotonic()
    try:
        with callbacks.neftune(model, settings.neftune_alpha):
            _train(trainer, resume_from)
    finally:
        shown.close()
        trainer.let_go()
    model.config.use_cache = True
    seconds, tokens = time.monotonic() - started, trainer.tokens * processes()
    return Curve(trainer.state.log_history, seconds, tokens, trainer.state.global_step, chooses)


def _train(trainer: SlimTrainer, resume_from: Path | None) -> None:
    if resume_from and checkpoints.finished(resume_from):
        trainer.restore_finished(resume_from)
        return
    with trainer.interruption.listening():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    state = trainer.state
    if trainer.interruption.asked and not trainer.finished:
        raise KeyboardInterrupt(
            f"step {state.global_step} of {state.max_steps} is saved; to go on: {_resume_words()}"
        )


def _resume_words() -> str:
    """The command that continues this one."""
    if processes() > 1:
        return "the same command with --resume"
    script, *words = command()
    kept = [word for word in words if word not in ("--overwrite", "--resume")]
    return to_paste(Path(script).stem, *kept, "--resume")


def steps_per_epoch(samples: int, settings: Training) -> int:
    """Updates of the weights that one time through the rows makes."""
    rows = settings.rows * settings.gradient_accumulation_steps * processes()
    return max(1, -(-samples // rows))


def _checkpoint_bytes(model: torch.nn.Module) -> int:
    """What a checkpoint takes: the trained weights and the optimizer's two moments of each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(one.numel() * (one.itemsize + 4 * _MOMENTS) for one in trained)


class OneDevice(TrainingArguments):
    """Arguments of a process that computes on one device, however many GPUs it sees.

    More would mean DataParallel, which cannot split a padding-free row.
    """

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


def training_arguments(
    model: torch.nn.Module, settings: Training, folder: Path, steps: int, validates: bool
) -> TrainingArguments:
    """What the Trainer is told: `steps` are those of one epoch."""
    parameter = next(model.parameters())
    # What it was loaded to compute with: trained weights and what nf4 leaves are float32 by now.
    numbers = model.config.dtype
    interval = max(1, steps // settings.evaluations_per_epoch)
    return OneDevice(
        output_dir=str(folder),
        per_device_train_batch_size=settings.rows,
        per_device_eval_batch_size=settings.rows,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        warmup_steps=settings.warmup_ratio if settings.warmup_ratio < 1 else 0.999,
        max_grad_norm=settings.max_grad_norm,
        # The name that transformers 5.17 and 5.23 both know.
        gradient_checkpointing=settings.activation_checkpointing is True,
        seed=settings.seed,
        bf16=parameter.device.type == "cuda" and numbers == torch.bfloat16,
        fp16=parameter.device.type == "cuda" and numbers == torch.float16,
        use_cpu=parameter.device.type == "cpu",
        eval_strategy="steps" if validates else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        # Else the Trainer refuses sharded models, whose optimizer checkpoints.py writes, not it.
        save_only_model=True,
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        logging_nan_inf_filter=False,
        logging_first_step=True,
        remove_unused_columns=False,
        dataloader_pin_memory=parameter.device.type == "cuda",
        disable_tqdm=True,
        report_to=[],  # _watch adds what is asked for, in a shape that cannot fail the run
        ddp_find_unused_parameters=False,
        ddp_timeout=_PATIENCE,
    )


def _watch(
    trainer: SlimTrainer,
    settings: Training,
    folder: Path,
    history: Sequence[dict[str, float]],
    stops_early: bool,
) -> ProgressShown:
    """Everything that looks on while the trainer works."""
    trainer.remove_callback(PrinterCallback)
    if settings.report_to != "none":
        _report_to(trainer, settings.report_to, folder)
    if stops_early:
        trainer.add_callback(callbacks.EarlyStopping(settings.early_stopping_patience))
    shown = ProgressShown(lambda: trainer.tokens * processes())
    if first_process():
        trainer.add_callback(MetricsFile(folder / METRICS, history))
        trainer.add_callback(shown)
    return shown


def _report_to(trainer: SlimTrainer, name: str, folder: Path) -> None:
    with decoration(f"training.report_to: {name}"):
        (made,) = get_reporting_integration_callbacks([name])
        reporter = made()
        if isinstance(reporter, TensorBoardCallback) and reporter.logging_dir is None:
            # Its own place is among the checkpoints, which go when the result is there.
            curves = folder.parent / "runs"
            reporter.logging_dir = str(curves / time.strftime("%Y-%m-%d_%H-%M-%S"))
            if first_process():
                note(f"curves: tensorboard --logdir {quoted(near(curves))}")
        trainer.add_callback(Reporting(name, reporter))


# What transformers calls them where its name is another one. Fused: an update is one kernel.
_NAMES = {"adamw_torch": "adamw_torch_fused"}
_LOWEST = 0.1  # of the rate, where cosine_with_min_lr ends
_DECAY = 5  # warmup_stable_decay falls in one part of so many


def optimizer_arguments(settings: Training, steps: int) -> dict[str, Any]:
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
