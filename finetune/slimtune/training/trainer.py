"""transformers.Trainer, hardened: padding-free batches, chunked losses, no silent failure.

Everything the Trainer is good at stays its own (optimizer, schedule, accumulation, accelerate).
Replaced are the loss, the evaluation (token-weighted, no logits kept), the checkpoints (whole or
not there) and the way runs fail: a loss or gradient that is not finite ends it within one step.

Where the Trainer has no public door for that, its private members are used: those of `PRIVATE`,
each with the reason why, and no others.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from slimtune.console import near
from slimtune.errors import QualityError
from slimtune.settings.flags import named
from slimtune.training import checkpoints, losses, saved_states, sharding
from slimtune.training.batches import collate
from slimtune.training.callbacks import Continuation, Interruption
from slimtune.training.forward import loss_parts, supervised

# Members of transformers.Trainer that are not promised to stay, each with why it is needed.
PRIVATE = {
    "_save_checkpoint": "replaced: a checkpoint is whole under its name or not there. The event "
    "on_save comes after the Trainer has written its own, under the final name",
    "_save_rng_state": "called: what it writes is read back by the Trainer at the one right time, "
    "between the rows passed over and the next one",
    "_clip_grad_norm": "extended: the gradient's norm is known here and before the update. The "
    "event on_pre_optimizer_step comes without it, and a norm of our own reads all gradients again",
}

_SKIPPED_STEPS = 20  # float16's loss scale halves at each: from 65,536 it is below 1 by then


class SlimTrainer(Trainer):
    """Trainer for padding-free batches of `Sample`s; `part_names` are the parts of its loss.
    With `share`, what rows of a batch begin with in common is computed once."""

    part_names: tuple[str, ...] = ("ce",)
    section = "training"  # of the settings that its learning rate is in
    loss_is_scaled_for_ga = True  # divided by the tokens of the whole accumulated batch

    def __init__(
        self, *args: Any, loraplus_ratio: float = 1.0, share: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, data_collator=partial(collate, share=share), **kwargs)
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

    def train(
        self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        if resume_from_checkpoint is not None:
            self.add_callback(Continuation(Path(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def let_go(self) -> None:
        """Hold nothing of the model any longer.

        On adapters of a sharded base the Trainer puts hooks that hold it, and hooks of tensors are
        beyond the garbage collector: through its references the base would stay in memory for good.
        """
        self.accelerator.free_memory()
        for holder in (self, self.callback_handler):
            holder.model = holder.optimizer = holder.lr_scheduler = None
        self.model_wrapped = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        sharding.reshard(self.model)
        if self.loraplus_ratio > 1 and self.optimizer is None:
            self.optimizer = loraplus(self.model, self.args, self.loraplus_ratio)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        # A run that is all warm-up never comes to its rate, and polynomial divides by what is left.
        rising = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        self.args.warmup_steps = rising
        schedule = super().create_scheduler(num_training_steps, optimizer)
        if min(schedule.get_last_lr()) == 0:
            self.lr_scheduler = risen(schedule, rising)
        return self.lr_scheduler

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
                batch = send_to_device(collate(batches[index % len(batches)]), self.args.device)
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
        kept = checkpoints.found(self._folder)
        before = f"{near(kept[-1])} from before it is kept; " if kept else ""
        return QualityError(
            f"training, step {step}: the {what} is not a finite number",
            "NaN or infinity spreads to every weight with the next update, so the run stopped here",
            f"{before}lower {named(f'{self.section}.learning_rate')} (it was "
            f"{self.args.learning_rate:g}), check the rows, or compute in float32 "
            f"({named('model.dtype')} float32)",
        )

    @property
    def finished(self) -> bool:
        """Whether the run is at its end: all steps done, or stopped early by validation."""
        stopping = self.control.should_training_stop and not self.interruption.asked
        return stopping or self.state.global_step >= self.state.max_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            raise self.not_finite("updated weights", self.state.global_step)
        folder, state, wait = self._folder, self.state, self.accelerator.wait_for_everyone
        if state.best_global_step:
            best = checkpoints.checkpoint_of(folder, state.best_global_step)
            state.best_model_checkpoint = str(best)
        with checkpoints.new_checkpoint(folder, state, self.finished, wait) as partial:
            self.save_model(str(partial))
            scaler = self.accelerator.scaler
            saved_states.save_optimizer(self.optimizer, self.lr_scheduler, scaler, partial)
            self._save_rng_state(str(partial))
            self._remember_callbacks()

    def _remember_callbacks(self) -> None:
        """What early stopping has counted so far, among others, into the state."""
        told = [*self.callback_handler.callbacks, self.control]
        exportable = [one for one in told if isinstance(one, ExportableState)]
        self.state.stateful_callbacks = {type(one).__name__: one.state() for one in exportable}

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir)

    def restore_finished(self, checkpoint: Path) -> None:
        """The state and the weights of a run that had ended when it wrote `checkpoint`."""
        self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))
        checkpoints.find_best(self.state, self._folder)
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        checkpoints.load_weights(self.model, Path(best) if best else checkpoint)


def risen(schedule: LambdaLR, steps: int) -> LambdaLR:
    """The schedule with (k + 1) / (steps + 1) of the rate in step k of its warm-up, k from 0.

    transformers has k / steps there: the first step of every run changes nothing, and a run of one
    step nothing at all. What comes after the warm-up stays as it is.
    """

    def rate(after: Callable[[int], float], k: int) -> float:
        return (k + 1) / (steps + 1) if k < steps else after(k)

    return LambdaLR(schedule.optimizer, [partial(rate, one) for one in schedule.lr_lambdas])


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
