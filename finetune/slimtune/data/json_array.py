"""The elements of a JSON array one by one, through a window little larger than one of them."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
# A decoder that ran out of text complains this near its end; any earlier complaint is a real one.
_LONGEST_LITERAL = 16


class BrokenArray(ValueError):
    """The text is no JSON array: `line`, `reason`, and what to do about it."""

    def __init__(self, line: int, reason: str, cure: str) -> None:
        super().__init__(line, reason, cure)
        self.line, self.reason, self.cure = line, reason, cure


def elements(stream: TextIO) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element; BrokenArray where the text stops being an array."""
    text = _Window(stream)
    text.skip()  # the [
    while text.next_character() != "]":
        if not text.next_character():
            raise BrokenArray(text.line, "the array ends without ]", "is the file complete?")
        line = text.line
        yield line, text.decode()
        if text.next_character() == ",":
            text.skip()
        elif text.next_character() not in ("]", ""):
            raise BrokenArray(text.line, "no comma between two rows", "put a comma there")
    text.skip()
    if text.next_character():
        raise BrokenArray(text.line, "text after the array's ]", "delete what follows the ]")


class _Window:
    """A stretch of the stream, the position in it, and the line of that position."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at = stream, "", 0
        self._decoder = json.JSONDecoder()
        self.line = 1

    def next_character(self) -> str:
        """The character after blanks, which are passed over; "" at the end of the stream."""
        while True:
            self._advance(_BLANKS.match(self._text, self._at).end())
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Pass over the next character that is no blank."""
        character = self.next_character()
        self._advance(self._at + len(character))

    def decode(self) -> Any:
        """The JSON value that starts here; BrokenArray with the line of the fault otherwise."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not (self._cut_off(error) and self._more()):
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    reason = f"not valid JSON: {error.msg}"
                    raise BrokenArray(line, reason, "repair or delete this row") from error
                continue
            self._advance(end)
            return value

    def _cut_off(self, error: json.JSONDecodeError) -> bool:
        near_end = error.pos >= len(self._text) - _LONGEST_LITERAL
        return near_end or error.msg.startswith("Unterminated")

    def _advance(self, position: int) -> None:
        self.line += self._text.count("\n", self._at, position)
        self._at = position

    def _more(self) -> bool:
        """Forget what was passed, append at least as much as is pending: long rows stay linear."""
        pending = self._text[self._at :]
        fresh = self._stream.read(max(_CHUNK, len(pending)))
        self._text, self._at = pending + fresh, 0
        return bool(fresh)
