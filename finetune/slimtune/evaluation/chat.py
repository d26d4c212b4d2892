"""Talking to a model in a terminal: streaming, history, a few commands.

    Chat(engine, template, output=sys.stdout).run(sys.stdin)

Streams are given, so a test talks as a person does. Ctrl-C stops the answer, not the program.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TextIO

from slimtune.evaluation.engines import Engine
from slimtune.prompts import Message, encode_prompt

_HELP = """\
/reset          forget the conversation
/system TEXT    set the system message (alone: remove it) and forget the conversation
/help           this list
/exit           leave (so does Ctrl-D)
Ctrl-C stops an answer; twice, it leaves."""


class Chat:
    """A conversation with one model: `messages` is what it remembers, `system` what comes first."""

    def __init__(
        self,
        engine: Engine,
        template: str,
        *,
        output: TextIO,
        system: str = "",
        max_new_tokens: int = 512,
        max_length: int = 2048,
    ) -> None:
        self.engine, self.template, self.output = engine, template, output
        self.system, self.messages = system, list[Message]()
        self.max_new_tokens, self.max_length = max_new_tokens, max_length

    def run(self, source: TextIO) -> None:
        """Reads lines until /exit or the end of `source`: commands, or something to say."""
        self._say("/help lists the commands.\n")
        while True:
            try:
                self._say("> ")
                line = source.readline()
            except KeyboardInterrupt:
                self._say("\n(/exit leaves)\n")
                continue
            if not line or line.strip() == "/exit":
                return
            self.take(line.strip())

    def take(self, line: str) -> None:
        """One line: runs a command, or asks the model and shows its answer as it grows."""
        word, _, rest = line.partition(" ")
        if word in _COMMANDS:
            _COMMANDS[word](self, rest.strip())
        elif word.startswith("/") and word[1:].isalpha():
            self._say(f"{word}: no such command; /help lists them\n")
        elif line:
            self._ask(line)

    def reset(self) -> None:
        """Forgets the conversation; the system message stays."""
        self.messages = []

    def _ask(self, question: str) -> None:
        self.messages.append(Message(role="user", content=question))
        answer = ""
        with closing(self._stream()) as pieces, _presses_of_ctrl_c() as presses:
            for piece in pieces:
                if presses:
                    self._say(" (stopped)")
                    break
                piece = piece if answer else piece.lstrip()
                answer += piece
                self._say(piece)
        self._say("\n")
        # The interrupted answer stays: the next question may be about it.
        self.messages.append(Message(role="assistant", content=answer.strip()))

    def _stream(self) -> Iterator[str]:
        return self.engine.stream(self._prompt(), self.max_new_tokens)

    def _prompt(self) -> list[int]:
        """The conversation as token ids, without its oldest turns where it became too long."""
        room = self.max_length - self.max_new_tokens
        while True:
            prompt = encode_prompt(self.engine.tokenizer, self._conversation(), self.template)
            if len(prompt) <= room or len(self.messages) < 3:
                return prompt
            self.messages = self.messages[2:]
            self._say("(the oldest turn is forgotten: the conversation became too long)\n")

    def _conversation(self) -> list[Message]:
        first = [Message(role="system", content=self.system)] if self.system else []
        return [*first, *self.messages]

    def _set_system(self, text: str) -> None:
        self.system = text
        self.reset()
        self._say("system message set\n" if text else "no system message\n")

    def _start_anew(self, _: str) -> None:
        self.reset()
        self._say("conversation forgotten\n")

    def _show_help(self, _: str) -> None:
        self._say(f"{_HELP}\n")

    def _say(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()


_COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/reset": Chat._start_anew,
    "/system": Chat._set_system,
    "/help": Chat._show_help,
}


@contextmanager
def _presses_of_ctrl_c() -> Iterator[list[int]]:
    """Collects presses instead of raising: an exception anywhere could cut the talk with a child
    process in two. A second press means it, and raises KeyboardInterrupt."""
    presses: list[int] = []

    def press(number: int, _: object) -> None:
        if presses:
            raise KeyboardInterrupt
        presses.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


def terminal_input() -> TextIO:
    """Standard input as UTF-8 in any locale; bytes that are no UTF-8 become U+FFFD."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin
