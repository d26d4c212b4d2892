"""One call from samples to a trained model: the arguments, the checkpoints, the curve."""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from slimtune.config import Config, Training
from slimtune.console import SettingsError, near
from slimtune.training.batches import Sample
from slimtune.training.trainer import OneLineAStep, SlimTrainer, StopWhenNotFinite

_log = logging.getLogger(__name__)

# A checkpoint without one of these was cut off while it was written.
_WHOLE = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
_LOGGED_LINES = 40


@dataclass(frozen=True)
class Curve:
    """What a training run measured, logged step by step (`history`) and in short."""

    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    tokens: int
    steps: int

    @property
    def validation(self) -> list[tuple[int, float]]:
        """(step, validation loss per token) of each validation."""
        return [(int(e["step"]), e["eval_loss"]) for e in self.history if "eval_loss" in e]

    @property
    def training(self) -> list[tuple[int, float]]:
        """(step, training loss per token) of each logged step."""
        return [(int(e["step"]), e["loss"]) for e in self.history if "loss" in e]

    def metrics(self) -> dict[str, Any]:
        """The numbers for run.json: losses per token, speed in tokens per second."""
        validation = [loss for _, loss in self.validation]
        return {
            "steps": self.steps,
            "train_loss_first": self.training[0][1],
            "train_loss_last": self.training[-1][1],
            "validation_loss_best": min(validation) if validation else None,
            "validation_loss_last": validation[-1] if validation else None,
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "training_seconds": round(self.seconds, 1),
        }

    def summary(self) -> str:
        """First and last losses in one line."""
        losses = self.training
        text = f"training {losses[0][1]:.3f} -> {losses[-1][1]:.3f}"
        if self.validation:
            best = min(loss for _, loss in self.validation)
            text += f", validation {self.validation[0][1]:.3f} -> {best:.3f}"
        return text

    def speed(self) -> str:
        """Training speed in words, prompts included."""
        return f"{self.tokens / max(self.seconds, 1e-9):.0f} tokens/s"

    def write(self, folder: Path) -> None:
        """metrics.jsonl, one logged step a line, and loss.png."""
        lines = [json.dumps(entry) for entry in self.history]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _plot(self, folder / "loss.png")


def fit(
    model: torch.nn.Module,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    settings: Training,
    checkpoints: Path,
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    resume: bool = False,
    trainer_class: type[SlimTrainer] = SlimTrainer,
    **trainer_options: Any,
) -> Curve:
    """Train `model` in place; with validation samples the best checkpoint is what it ends with.

    `epochs` and `learning_rate` replace those of the settings. `checkpoints` is removed when the
    run has finished. Raises QualityError at a loss or gradient that is not finite.
    """
    last = _checkpoint_to_resume(checkpoints) if resume else None
    steps = _steps_per_epoch(len(train), settings)
    arguments = _arguments(model, settings, checkpoints, steps, bool(validation))
    # A resumed run has measured its start already; a second time would cost patience.
    arguments.eval_on_start = bool(validation) and last is None
    arguments.num_train_epochs = epochs or settings.epochs
    arguments.learning_rate = learning_rate or settings.learning_rate
    arguments.logging_steps = max(1, round(steps * arguments.num_train_epochs / _LOGGED_LINES))
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=list(train),
        eval_dataset=list(validation) or None,
        callbacks=_callbacks(settings, bool(validation)),
        **trainer_options,
    )
    trainer.remove_callback(PrinterCallback)
    model.config.use_cache = False
    started = time.time()
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds = time.time() - started
    model.config.use_cache = True
    done = trainer.state.epoch or arguments.num_train_epochs
    tokens = round(sum(len(sample.input_ids) for sample in train) * done)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Curve(trainer.state.log_history, seconds, tokens, trainer.state.global_step)


def _steps_per_epoch(samples: int, settings: Training) -> int:
    return max(1, -(-samples // (settings.batch_size * settings.gradient_accumulation_steps)))


def _arguments(
    model: torch.nn.Module, settings: Training, folder: Path, steps: int, validates: bool
) -> TrainingArguments:
    parameter = next(model.parameters())
    interval = max(1, steps // settings.evaluations_per_epoch)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler_type=settings.lr_scheduler,
        warmup_steps=settings.warmup_ratio if settings.warmup_ratio < 1 else 0.999,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.activation_checkpointing,
        seed=settings.seed,
        bf16=parameter.device.type == "cuda" and model.dtype == torch.bfloat16,
        fp16=parameter.device.type == "cuda" and model.dtype == torch.float16,
        use_cpu=parameter.device.type == "cpu",
        eval_strategy="steps" if validates else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        logging_nan_inf_filter=False,
        logging_first_step=True,
        remove_unused_columns=False,
        dataloader_pin_memory=parameter.device.type == "cuda",
        disable_tqdm=True,
        report_to=[],
    )


def _callbacks(settings: Training, validates: bool) -> list[Any]:
    callbacks: list[Any] = [StopWhenNotFinite(), OneLineAStep()]
    if validates:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    return callbacks


def refuse_forgotten_checkpoints(checkpoints: Path, config: Config) -> None:
    """A stopped run's work is continued or given up on purpose, never by accident."""
    resume, overwrite = config.options.resume, config.options.overwrite
    if not resume and not overwrite and any(checkpoints.glob("checkpoint-*")):
        raise SettingsError(
            f"{near(checkpoints)}: a stopped run left its checkpoints here",
            "starting again would throw its work away",
            "add --resume to go on, or --overwrite to start from nothing",
        )
    if overwrite and not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)


def _checkpoint_to_resume(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint, None (and a word) where there is none."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    whole = [one for one in found if all((one / name).is_file() for name in _WHOLE)]
    if not whole:
        _log.info("nothing to resume in %s: starting at step 0", near(checkpoints))
        return None
    _log.info("resuming from %s", near(whole[-1]))
    return whole[-1]


def _plot(curve: Curve, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*curve.training, strict=True), label="training")
    if curve.validation:
        axes.plot(*zip(*curve.validation, strict=True), "o-", label="validation")
    axes.set(xlabel="step", ylabel="loss per supervised token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
