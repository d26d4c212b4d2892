"""What a run says while it runs: one bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable

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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from slimtune.console import size

_log = logging.getLogger(__name__)


class ProgressShown(TrainerCallback):
    """One bar with loss, tokens per second, memory and the time left; without a terminal, lines.

    `tokens` says how many the run has seen since it started, over all processes.
    """

    def __init__(self, tokens: Callable[[], int]) -> None:
        self.tokens = tokens
        self.loss = ""
        self.bar: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        if not sys.stderr.isatty():
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(
            "", total=state.max_steps, completed=state.global_step, figures=""
        )
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.bar:
            figures = f"{self.loss}  {self._costs()}"
            self.bar.update(self.task, completed=state.global_step, figures=figures)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        logs = logs or {}
        where = f"step {state.global_step}/{state.max_steps}"
        if "eval_loss" in logs:
            self._say(f"{where}  validation loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            parts = "".join(f"  {name} {logs[name]:.4f}" for name in ("kd", "ce") if name in logs)
            self.loss = f"loss {logs['loss']:.4f}{parts}"
            if self.bar is None:
                rate = f"learning rate {logs['learning_rate']:.2e}"
                self._say(f"{where}  {self.loss}  {rate}  {self._costs()}  {self._left(state)}")

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
