"""What looks on while the trainer works, and may step in.

Ctrl-C and SIGTERM let the step be finished and saved (`Interruption`); a stopped run goes on with
the optimizer it had (`Continuation`); progress is one bar or plain lines (`ProgressShown`);
tensorboard and the like may fail without the run (`Reporting`); a loss that does not fall any more
ends it (`EarlyStopping`); `neftune` puts noise on the
embeddings while a model trains.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from slimtune.config.training import ENOUGH_UPDATES
from slimtune.console import decoration, note, size, tenth_done
from slimtune.training import checkpoints, saved_states
from slimtune.training.forward import causal_model

_log = logging.getLogger(__name__)
_SHORTEST_BAR, _LONGEST_BAR = 8, 40  # cells
_WORDS = len("training " + " " + " " + " 0:00:00 left")  # beside bar, count and figures
_FIGURES = 62  # cells that they should have before the bar grows


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, but for the first ENOUGH_UPDATES: of few rows each validation is a step or
    two after the other, and the loss of a dozen rows stands still before it falls again. A FAQ of
    45 rows was stopped after 18 updates, with 0 of 23 questions answered right.
    """

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **told: Any
    ) -> None:
        if state.global_step >= ENOUGH_UPDATES:
            super().on_evaluate(args, state, control, **told)


class Interruption(TrainerCallback):
    """Asks the trainer to save and stop at the end of the step in which a signal came."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the first Ctrl-C or SIGTERM is a request; a second Ctrl-C ends the run at once.

        A second SIGTERM changes nothing: launchers pass Ctrl-C on as both. What the run was started
        to ignore (a script's background jobs ignore Ctrl-C) it goes on ignoring: that Ctrl-C was
        meant for the program in the foreground.
        """
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = [signal.signal(number, self._ask) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt("at once: the last checkpoint is what --resume goes on from")
        if not self.asked:
            note("finishing this step and saving it; Ctrl-C again ends at once")
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if args.world_size > 1:
            self.asked = self._anybody(args.device)
        if self.asked:
            control.should_save = control.should_training_stop = True

    def _anybody(self, device: torch.device) -> bool:
        """Whether any process was asked: all must stop at the same step, or none ever ends."""
        asked = torch.tensor([float(self.asked)], device=device)
        torch.distributed.all_reduce(asked)
        return bool(asked.item())


class Continuation(TrainerCallback):
    """Before the first step of a resumed run: optimizer and schedule as they were, the best found.

    The Trainer itself can load neither an optimizer in parts nor a folder that has moved.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        **_: object,
    ) -> None:
        saved_states.load_optimizer(optimizer, lr_scheduler, self.checkpoint)
        checkpoints.find_best(state, Path(args.output_dir))


class Reporting(TrainerCallback):
    """Hands every event on to `reporter` until it fails: then a word, and nothing more."""

    def __init__(self, name: str, reporter: TrainerCallback) -> None:
        self.name, self.reporter, self.failed = name, reporter, False
        for event in vars(TrainerCallback):
            if event.startswith("on_"):
                setattr(self, event, partial(self._hand_on, event))

    def _hand_on(self, event: str, *told: Any, **more: Any) -> TrainerControl | None:
        if self.failed:
            return None
        self.failed = True  # unless it comes back
        with decoration(f"training.report_to: {self.name}"):
            answer = getattr(self.reporter, event)(*told, **more)
            self.failed = False
            return answer


class ProgressShown(TrainerCallback):
    """One bar with loss, tokens per second, memory and the time left; without a terminal, lines.

    What of a loss's parts has no room on a narrow terminal is left out, so that no figure is cut.

    `tokens` says how many the run has seen since it started, over all processes.
    """

    def __init__(self, tokens: Callable[[], int]) -> None:
        self.tokens = tokens
        self.loss, self.parts = "", ""
        self.bar: Progress | None = None
        self.told: dict[str, int] = {}  # step of the last training loss, and of validation's

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        if not sys.stderr.isatty():
            return
        console = Console(stderr=True)
        free = console.width - _WORDS - len(f"{state.max_steps}/{state.max_steps}")
        bar = max(_SHORTEST_BAR, min(_LONGEST_BAR, free - _FIGURES))
        self.room = free - bar
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(bar),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self.task = self.bar.add_task(
            "", total=state.max_steps, completed=state.global_step, figures=""
        )
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.bar:
            self.bar.update(self.task, completed=state.global_step, figures=self._figures())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        logs = logs or {}
        kind = "eval_loss" if "eval_loss" in logs else "loss"
        before, self.told[kind] = self.told.get(kind, 0), state.global_step
        due = tenth_done(before, state.global_step, max(1, state.max_steps))
        where = f"step {state.global_step}/{state.max_steps}"
        if "eval_loss" in logs and (self.bar or due):
            self._say(f"{where}  validation loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}"
            told = [f"  {name} {logs[name]:.4f}" for name in ("kd", "ce") if name in logs]
            self.parts = "".join(told)
            if self.bar is None and due:
                rate = f"learning rate {logs['learning_rate']:.2e}"
                costs = f"{rate}  {self._costs()}  {self._left(state)}"
                self._say(f"{where}  {self.loss}{self.parts}  {costs}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _say(self, line: str) -> None:
        if self.bar:
            self.bar.console.print(line, highlight=False)
        else:
            _log.info("%s", line)

    def _figures(self) -> str:
        """As much of loss, its parts, speed and memory as there is room for, by what matters."""
        speed, memory = self._costs().split("  ")
        choices = [(self.loss + self.parts, speed, memory), (self.loss, speed, memory)]
        choices += [(self.loss, speed), (self.loss,)]
        fitting = ("  ".join(parts) for parts in choices)
        return next((text for text in fitting if len(text) <= self.room), "")

    def _costs(self) -> str:
        speed = self.tokens() / (time.monotonic() - self.started)
        return f"{speed:.0f} tokens/s  {size(memory_now())}"

    def _left(self, state: TrainerState) -> str:
        """Hours, minutes and seconds to go at the pace so far."""
        pace = (time.monotonic() - self.started) / max(1, state.global_step - self.first)
        seconds = round(pace * (state.max_steps - state.global_step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def memory_now() -> int:
    """Bytes that this process holds: on the GPU where it computes on one, else resident."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_reserved()
    return psutil.Process().memory_info().rss


@contextmanager
def neftune(model: nn.Module, alpha: float) -> Iterator[None]:
    """Within, and while the model trains, each embedding e of a sample of n tokens becomes
    e + u, u uniform in ±alpha / √(n · hidden size) (NEFTune, arXiv:2310.05914). An `alpha` of 0
    does nothing.

    transformers' own takes n from the row's length; a padding-free row holds a whole batch, so
    there the noise would be too weak by the square root of the batch size. Here each sample counts
    alone.
    """
    if alpha == 0:
        yield
        return
    causal = causal_model(model)
    positions: list[torch.Tensor] = []

    def remember(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        positions[:] = [kwargs["position_ids"]]

    def add_noise(module: nn.Module, args: tuple, embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        bound = alpha / (lengths(positions[0]) * embedded.shape[-1]).sqrt()
        noise = torch.zeros_like(embedded).uniform_(-1, 1)
        return embedded + noise * bound[..., None].to(embedded.dtype)

    hooks = [
        # On the decoder: peft calls the causal model's forward without its hooks.
        causal.base_model.register_forward_pre_hook(remember, with_kwargs=True),
        causal.get_input_embeddings().register_forward_hook(add_noise),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def lengths(positions: torch.Tensor) -> torch.Tensor:
    """For each token the length of its sample; `positions` (1, tokens) count from 0 in each."""
    samples = (positions[0] == 0).cumsum(0) - 1
    return samples.bincount()[samples][None]
