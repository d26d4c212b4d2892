"""Talking to models in a terminal: streaming, history, two side by side.

    talk(Chat([Partner("tuned", template, load)], output=sys.stdout), sys.stdin)

Streams are given, so a test talks as a person does. Ctrl-C stops the answer, not the program.
"""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from slimtune.chat.growing import Growing
from slimtune.chat.side_by_side import SideBySide
from slimtune.console import fitted, terminal_width
from slimtune.data.turns import without_special_tokens
from slimtune.errors import SlimTuneError
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import Engine
from slimtune.inference.server_client import ServerClient
from slimtune.prompts import ChatMessage, encode_prompt


@dataclass(frozen=True)
class Partner:
    """Someone to talk to, loaded when first spoken to."""

    label: str
    template: str
    load: Callable[[], Engine | ServerClient]


class Chat:
    """A conversation with one model or two: `histories` is what each of the `speakers` remembers.

    The last of `partners` speaks first. `system` comes before every conversation; an answer is
    chosen as `decoding` says; a conversation has the room of the model's context, `max_length` at
    most.
    """

    def __init__(
        self,
        partners: Sequence[Partner],
        *,
        output: TextIO,
        system: str = "",
        decoding: Decoding,
        max_length: int = 2048,
    ) -> None:
        self.partners = {partner.label: partner for partner in partners}
        self.output, self.system = output, system
        self.decoding, self.max_length = decoding, max_length
        self.asked = 0  # questions so far: each answer draws anew
        self.speakers = [partners[-1].label]
        self.histories: dict[str, list[ChatMessage]] = {self.speakers[0]: []}
        self.engines: dict[str, Engine | ServerClient] = {}

    def ask(self, question: str) -> None:
        """Says `question` to every speaker and shows the answers as they grow."""
        for label in self.speakers:
            self.histories[label].append(ChatMessage(role="user", content=question))
        try:
            streams = [self._stream(label) for label in self.speakers]
            answers = self._hear_both(streams) if len(streams) > 1 else self._hear(streams[0])
        except SlimTuneError:
            for label in self.speakers:
                self.histories[label].pop()
            raise
        finally:
            self.asked += 1
        # An interrupted answer stays: the next question may be about it.
        for label, answer in zip(self.speakers, answers, strict=True):
            self.histories[label].append(ChatMessage(role="assistant", content=answer.strip()))

    def engine(self, label: str) -> Engine | ServerClient:
        """The loaded model; those that do not speak are let go first."""
        for other in [one for one in self.engines if one not in self.speakers]:
            self.engines.pop(other).close()
        if label not in self.engines:
            self.engines[label] = self.partners[label].load()
        return self.engines[label]

    def let(self, *labels: str) -> None:
        """These speak from now on; who has not heard the conversation so far is told it."""
        heard = self.histories[self.speakers[0]]
        before, self.speakers = self.speakers, list(labels)
        try:
            for label in labels:
                self.engine(label)
        except SlimTuneError:
            self.speakers = before
            raise
        self.histories = {
            label: self.histories.get(label, list(heard)) if label in before else list(heard)
            for label in labels
        }

    def close(self) -> None:
        """Lets all models go."""
        for engine in self.engines.values():
            engine.close()

    def conversation(self, label: str) -> list[ChatMessage]:
        """All that a speaker was told and said, the system message first.

        Control tokens typed as text are harmless, as in prepared rows.
        """
        first = [ChatMessage(role="system", content=self.system)] if self.system else []
        return without_special_tokens([*first, *self.histories[label]])

    def say(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()

    def tell(self, text: str) -> None:
        """Words of ours, in lines of the terminal's width."""
        self.say(f"{fitted(text, self.output)}\n")

    def _hear(self, stream: Iterator[str]) -> list[str]:
        answer = Growing(terminal_width(self.output))
        with _presses_of_ctrl_c() as presses:
            for piece in stream:
                if presses:
                    break
                self.say(answer.add(piece if answer.text else piece.lstrip()))
        stream.close()
        self.say(answer.end() + (" (stopped)\n" if presses else "\n"))
        return [answer.text]

    def _hear_both(self, streams: Sequence[Iterator[str]]) -> list[str]:
        columns = SideBySide(self.speakers, min(shutil.get_terminal_size((100, 24)).columns, 160))
        self.say(columns.head)
        with _presses_of_ctrl_c() as presses:
            for column, piece in _in_turn(streams):
                if presses:
                    break
                if piece is None:
                    self.say(columns.end(column))
                else:
                    first = not columns.texts[column]
                    self.say(columns.add(column, piece.lstrip() if first else piece))
        for column, stream in enumerate(streams):
            stream.close()
            self.say(columns.end(column))
        self.say("(stopped)\n" if presses else "")
        return columns.texts

    def _stream(self, label: str) -> Iterator[str]:
        engine = self.engine(label)
        if isinstance(engine, ServerClient):
            return engine.stream(self.conversation(label), self.decoding)
        context = min(self.max_length, engine.context)
        decoding = self.decoding.within(context // 2).for_row(self.asked)
        prompt = self._prompt(label, engine, context - decoding.max_new_tokens)
        return engine.stream(prompt, decoding)

    def _prompt(self, label: str, engine: Engine, room: int) -> list[int]:
        """The conversation as token ids, without its oldest turns where it became too long."""
        told = engine.tokenizer, self.partners[label].template
        while True:
            prompt = encode_prompt(told[0], self.conversation(label), told[1])
            if len(prompt) <= room:
                return prompt
            if len(self.histories[label]) < 3:
                whose = f" for {label}" if len(self.speakers) > 1 else ""
                size = f"{len(prompt)} tokens, {room} have room"
                self.say(f"(the message is too long{whose} and loses its beginning: {size})\n")
                return encode_prompt(told[0], self.conversation(label), told[1], room)
            self.histories[label] = self.histories[label][2:]
            self.say("(the oldest turn is forgotten: the conversation became too long)\n")


def _in_turn(streams: Sequence[Iterator[str]]) -> Iterator[tuple[int, str | None]]:
    """(stream's number, its next piece) by turns; None once at the end of each."""
    going = list(enumerate(streams))
    while going:
        for number, stream in list(going):
            piece = next(stream, None)
            yield number, piece
            if piece is None:
                going.remove((number, stream))


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
