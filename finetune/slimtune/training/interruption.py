"""Ctrl-C and SIGTERM: the step is finished and saved, then the run ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from slimtune.console import note


class Interruption(TrainerCallback):
    """Asks the trainer to save and stop at the end of the step in which a signal came."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the first Ctrl-C or SIGTERM is a request; a second Ctrl-C ends the run at once.

        A second SIGTERM changes nothing: launchers pass Ctrl-C on as both.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
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
