"""transformers.Trainer, hardened: padding-free batches, chunked losses, no silent failure.

Everything the Trainer is good at stays its own (optimizer, schedule, accumulation, checkpoints,
accelerate). Replaced are the loss, the evaluation (token-weighted, no logits kept) and the way
runs fail: a loss or gradient that is not finite ends the run within one step.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback

from slimtune.console import QualityError
from slimtune.prompts import IGNORED
from slimtune.training import losses
from slimtune.training.batches import collate

_log = logging.getLogger(__name__)


class SlimTrainer(Trainer):
    """Trainer for padding-free batches of `Sample`s; `part_names` are the parts of its loss."""

    part_names: tuple[str, ...] = ("ce",)
    loss_is_scaled_for_ga = True  # divided by the tokens of the whole accumulated batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=collate, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._parts: list[tuple[torch.Tensor, int]] = []

    def loss_of(self, batch: dict[str, Any], positions: torch.Tensor) -> losses.Loss:
        """The loss of a batch at `positions` (indices into its row of tokens)."""
        targets = batch["labels"][0, positions + 1]
        return lambda logits, rows: losses.cross_entropy(logits, targets[rows])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        total, parts, count = self._sums(model, inputs)
        if not torch.isfinite(total):
            raise _not_finite("loss", self.state.global_step + 1)
        self._parts.append((parts, count))
        return total / (num_items_in_batch if num_items_in_batch is not None else max(count, 1))

    def _sums(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Loss summed over the supervised positions, its parts, and how many positions they are."""
        positions = (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(1)
        head = output_head(model)
        with _returns_hidden_states(head):
            hidden = model(
                input_ids=batch["input_ids"],
                position_ids=batch["position_ids"],
                lengths=batch["lengths"],
                logits_to_keep=positions,
                use_cache=False,
            ).logits[0]
        total, parts = losses.chunked_loss(hidden, head.weight, self.loss_of(batch, positions))
        return total, parts, len(positions)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The mean of each part of the loss per supervised token of the evaluation rows."""
        self.model.eval()
        parts, count = torch.zeros(len(self.part_names)), 0
        with torch.no_grad():
            for batch in self.get_eval_dataloader(eval_dataset):
                _, batch_parts, tokens = self._sums(self.model, self._prepare_inputs(batch))
                parts, count = parts + batch_parts.cpu(), count + tokens
        means = (parts / count).tolist()
        metrics = {f"{metric_key_prefix}_loss": means[0]}
        for name, value in zip(self.part_names[1:], means[1:], strict=True):
            metrics[f"{metric_key_prefix}_{name}"] = value
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            count = sum(tokens for _, tokens in self._parts)
            means = (sum(parts for parts, _ in self._parts) / count).tolist()
            for name, value in zip(self.part_names[1:], means[1:], strict=True):
                logs[name] = value
            self._parts = []
        super().log(logs, start_time)


def output_head(model: nn.Module) -> nn.Linear:
    """The module that turns hidden states into logits, under any wrapper."""
    while isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    return causal.get_output_embeddings()


@contextmanager
def _returns_hidden_states(head: nn.Linear) -> Iterator[None]:
    """Within, the head passes hidden states through, so that the model returns them as logits.

    The model's own forward still runs (with every wrapper and hook around it), which calling the
    decoder inside it would not do.
    """
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


class StopWhenNotFinite(TrainerCallback):
    """Ends the run, before the update is applied, when a gradient is NaN or infinite."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        if args.fp16:
            return  # the gradient scaler skips such a step itself and lowers its scale
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        if norms and not torch.isfinite(torch.stack(norms)).all():
            raise _not_finite("gradient", state.global_step + 1)


def _not_finite(what: str, step: int) -> QualityError:
    return QualityError(
        f"training, step {step}: the {what} is not a finite number",
        "NaN or infinity spreads to every weight with the next update, so the run stopped here",
        "lower --learning-rate, check the rows, or compute in float32 (--dtype float32)",
    )


class OneLineAStep(TrainerCallback):
    """Progress in our words: one line a logged step, one a validation."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        logs = logs or {}
        where = f"step {state.global_step}/{state.max_steps}"
        if "eval_loss" in logs:
            _log.info("%s  validation loss %.4f", where, logs["eval_loss"])
        elif "loss" in logs:
            parts = "".join(f"  {name} {logs[name]:.4f}" for name in ("kd", "ce") if name in logs)
            rate = logs.get("learning_rate", 0.0)
            _log.info("%s  loss %.4f%s  learning rate %.2e", where, logs["loss"], parts, rate)
