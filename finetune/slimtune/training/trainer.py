"""transformers.Trainer, hardened: padding-free batches, chunked losses, no silent failure.

Everything the Trainer is good at stays its own (optimizer, schedule, accumulation, accelerate).
Replaced are the loss, the evaluation (token-weighted, no logits kept), the checkpoints (whole or
not there) and the way runs fail: a loss or gradient that is not finite ends it within one step.
"""

import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from slimtune.console import QualityError, near
from slimtune.machine import onednn
from slimtune.training import checkpoints, fitting, losses, sharding
from slimtune.training.batches import collate
from slimtune.training.callbacks import Interruption
from slimtune.training.forward import loss_parts, supervised

_SKIPPED_STEPS = 20  # float16's loss scale halves at each: from 65,536 it is below 1 by then


class SlimTrainer(Trainer):
    """Trainer for padding-free batches of `Sample`s; `part_names` are the parts of its loss."""

    part_names: tuple[str, ...] = ("ce",)
    loss_is_scaled_for_ga = True  # divided by the tokens of the whole accumulated batch

    def __init__(self, *args: Any, loraplus_ratio: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=collate, **kwargs)
        self.loraplus_ratio = loraplus_ratio
        self.model_accepts_loss_kwargs = True
        self.interruption = Interruption()
        self.add_callback(self.interruption)
        self.tokens = 0  # seen by this process since it started
        self._parts: list[torch.Tensor] = []
        self._skipped = 0

    def create_accelerator_and_postprocess(self) -> None:
        with sharding.done_already():
            super().create_accelerator_and_postprocess()

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        # Its hooks on adapters of a sharded base hold the Trainer, and tensors' hooks are beyond
        # the garbage collector: with a real reference the base would stay in memory for good.
        Trainer._sync_replicated_trainable_parameters(weakref.proxy(self), model)

    @onednn.onednn_products()
    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        sharding.reshard(self.model)
        if self.loraplus_ratio > 1 and self.optimizer is None:
            self.optimizer = fitting.loraplus(self.model, self.args, self.loraplus_ratio)
        return super().create_optimizer(model)

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
        """The batch's share of the mean over all supervised tokens of the step.

        Gradients are averaged over processes and `num_items_in_batch` counts the tokens of all of
        them, so each process gives its share times their number.
        """
        parts, count = self.sums(model, inputs)
        self.tokens += inputs["input_ids"].numel()
        self._parts.append(torch.cat([parts.detach(), parts.new_tensor([count])]))
        tokens = num_items_in_batch if num_items_in_batch is not None else max(count, 1)
        return parts[0] * self.args.world_size / tokens

    def sums(self, model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """The parts of the loss summed over the supervised positions, and how many these are."""
        positions = supervised(batch)
        parts = loss_parts(model, batch, positions, self.loss_of(batch, positions))
        return parts, len(positions)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The mean of each part of the loss per supervised token of the evaluation rows.

        The processes take the batches in turn; where the last round has too few, a batch is run
        again and not counted, because sharded models need every process at every step.
        """
        samples = list(self.eval_dataset if eval_dataset is None else eval_dataset)
        size, world = self.args.per_device_eval_batch_size, self.args.world_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        sums = torch.zeros(len(self.part_names) + 1, dtype=torch.float64)
        self.model.eval()
        with torch.no_grad():
            for first in range(0, len(batches), world):
                index = first + self.args.process_index
                batch = self._prepare_inputs(collate(batches[index % len(batches)]))
                parts, count = self.sums(self.model, batch)
                if index < len(batches):
                    sums += torch.tensor([*parts.tolist(), count], dtype=torch.float64)
        *means, _ = self._means(sums)
        if not torch.isfinite(torch.tensor(means[0])):
            raise self.not_finite("validation loss", self.state.global_step)
        metrics = self._named(means, f"{metric_key_prefix}_")
        metrics[f"{metric_key_prefix}_loss"] = means[0]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            *means, tokens = self._means(torch.stack(self._parts).double().sum(0))
            logs |= self._named(means) | {"supervised_tokens": int(tokens)}
            self._parts = []
        super().log(logs, start_time)

    def _means(self, sums: torch.Tensor) -> list[float]:
        """Sums of the parts and a count, over all processes, as means and the count."""
        *parts, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        return [*(part / count for part in parts), count]

    def _named(self, means: list[float], prefix: str = "") -> dict[str, float]:
        return {
            f"{prefix}{name}": value
            for name, value in zip(self.part_names[1:], means[1:], strict=True)
        }

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nobody reads it, and counting walks over every parameter at every step

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips, and ends the run before the update where loss or gradient are not finite.

        In float16 the gradient scaler skips such a step itself and lowers its scale: only steps
        skipped without end are an error there.
        """
        norm = super()._clip_grad_norm(model)
        loss = torch.isfinite(torch.stack(self._parts)).all()
        if loss and torch.isfinite(norm):
            self._skipped = 0
            return norm
        self._skipped += 1
        if not loss or not self.args.fp16 or self._skipped >= _SKIPPED_STEPS:
            raise self.not_finite("gradient" if loss else "loss", self.state.global_step + 1)
        return norm

    def not_finite(self, what: str, step: int) -> QualityError:
        """The error for a number that is NaN or infinite; it names the last good checkpoint."""
        kept = checkpoints.found(Path(self.args.output_dir))
        before = f"{near(kept[-1])} from before it is kept; " if kept else ""
        return QualityError(
            f"training, step {step}: the {what} is not a finite number",
            "NaN or infinity spreads to every weight with the next update, so the run stopped here",
            f"{before}lower --learning-rate, check the rows, or compute in float32 "
            "(--dtype float32)",
        )

    @property
    def finished(self) -> bool:
        """Whether the run is at its end: all steps done, or stopped early by validation."""
        stopping = self.control.should_training_stop and not self.interruption.asked
        return stopping or self.state.global_step >= self.state.max_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            raise self.not_finite("updated weights", self.state.global_step)
        checkpoints.save_checkpoint(self)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(self, Path(checkpoint))

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        done = super()._init_training_state(*args)
        self._find_best()
        return done

    def _find_best(self) -> None:
        """Where the best checkpoint is now: the folder may have moved since it was written."""
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def restore_finished(self, checkpoint: Path) -> None:
        """The state and the weights of a run that had ended when it wrote `checkpoint`."""
        self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))
        self._find_best()
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
