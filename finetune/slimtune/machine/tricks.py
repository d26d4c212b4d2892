"""The tricks of this room by name, the switch that turns them off, and how they nest.

    SLIMTUNE_TRICKS_OFF=malloc python finetune/train_lora.py

The variable is read whenever a trick is about to be used, so that processes started by a script
follow it as well.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from slimtune.errors import SettingsError

SWITCH = "SLIMTUNE_TRICKS_OFF"
TRICKS = {  # name -> what it brings, and the benchmark that prints it
    "malloc": "pruning in 411 MB where it took 441 to 686 (benchmarks/low_memory.py)",
    "unused_packages": "126 MB and 1.3 CPU seconds of a start (benchmarks/unused_packages.py)",
}


def tricks_off() -> set[str]:
    """The tricks that the environment turns off; raises SettingsError for a name not among them."""
    words = {word.strip() for word in os.environ.get(SWITCH, "").split(",")} - {""}
    unknown = sorted(words - set(TRICKS))
    if unknown:
        raise SettingsError(
            f"{SWITCH}: no trick is called {', '.join(unknown)}",
            "a misspelt name would leave the trick on without a word",
            f"use one or more of {','.join(TRICKS)}, with commas between",
        )
    return words


def is_on(trick: str) -> bool:
    """Whether a trick, one of TRICKS, may be used; whether it helps here is its own question."""
    return trick not in tricks_off()


class Nested:
    """A change of the whole process that may be asked for inside itself.

    The first to open it makes the change and the last to leave undoes it, in whatever order they
    leave and also by an error: an inner user never takes it from an outer one.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self._undo = ExitStack()
        self.users = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The change, from now until nobody has it open; also a decorator."""
        self.open_for_good()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self._undo.close()

    def open_for_good(self) -> None:
        """Make the change and count a user who never leaves."""
        if not self.users:
            self._undo.enter_context(self._change())
        self.users += 1
