"""The elements of a JSON array one by one, through a window little larger than one of them.

The array may lie under a key, {"data": [...]}; and objects may follow each other without one.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n\]])")
TWICE = "\0twice"  # a key that no text of a file can be


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; under TWICE the first of its names that occurs again, for one of the two values
    would win in silence."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        row[TWICE] = next(name for name in names if names.count(name) > 1)
    return row


# NaN, which pandas writes for an empty cell, and Infinity are nothing: as text they were learned.
DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_named_once)
# A decoder that ran out of text complains this near its end; any earlier complaint is a real one.
_LONGEST_LITERAL = 16


class BrokenArray(ValueError):
    """The text is no JSON array: `line`, `reason`, and what to do about it."""

    def __init__(self, line: int, reason: str, cure: str) -> None:
        super().__init__(line, reason, cure)
        self.line, self.reason, self.cure = line, reason, cure


def array_blocks(stream: TextIO, size: int, form: str = "array") -> Iterator[tuple[int, str]]:
    """(line, elements with the commas between them) of at least `size` characters each.

    `form` is one of FORMS: how the elements lie in the stream.

    Only a parser knows where an element ends: a brace may stand in a text. So the elements are
    parsed here and their values thrown away; C does that at hundreds of megabytes a second.
    """
    text, first = _Window(stream), 0
    for line in FORMS[form](text):
        if not first:
            first = line
            text.hold()
        text.decode()
        if text.held >= size:
            yield first, text.release()
            first = 0
    if first:
        yield first, text.release()


def values(block: str, line: int) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of a block that starts at `line`."""
    decode, at = DECODER.raw_decode, 0
    while at < len(block):
        value, end = decode(block, at)
        yield line, value
        after = _BETWEEN.match(block, end).end()
        line += block.count("\n", at, after)
        at = after


def _starts(text: "_Window", within: bool = False) -> Iterator[int]:
    """The line of each element, with the window at its start; the caller decodes it.

    BrokenArray where the text stops being an array.
    """
    text.skip()  # the [
    while text.next_character() != "]":
        if not text.next_character():
            raise BrokenArray(text.line, "the array ends without ]", "is the file complete?")
        yield text.line
        while text.at_next_element():
            yield text.line
        if text.next_character() == ",":
            text.skip()
        elif text.next_character() not in ("]", ""):
            raise BrokenArray(text.line, "no comma between two rows", "put a comma there")
    text.skip()
    if text.next_character() and not within:
        raise BrokenArray(text.line, "text after the array's ]", "delete what follows the ]")


def _starts_under_a_key(text: "_Window") -> Iterator[int]:
    text.skip()  # the {
    text.next_character()
    key = text.decode()
    text.next_character()
    text.skip()  # the :
    yield from _starts(text, within=True)
    if text.next_character() == ",":
        text.skip()
        text.next_character()
        reason = f'the list "{key}" is followed by "{text.decode()}" in the same object'
        cure = f"put the list you want into a file of its own: jq '.\"{key}\"' FILE > rows.json"
        raise BrokenArray(text.line, reason, cure)
    if text.next_character() != "}":
        raise BrokenArray(text.line, f'no }} after the list "{key}"', "is the file complete?")
    text.skip()
    if text.next_character():
        raise BrokenArray(text.line, "text after the object's }", "delete what follows the }")


def _starts_without_array(text: "_Window") -> Iterator[int]:
    while text.next_character():
        yield text.line
        if text.next_character() == ",":
            text.skip()


FORMS = {"array": _starts, "wrapped": _starts_under_a_key, "objects": _starts_without_array}


class _Window:
    """A stretch of the stream, the position in it, and the line of that position."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at, self._end = stream, "", 0, 0
        self._held_from: int | None = None
        self._decoder = DECODER
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

    def at_next_element(self) -> bool:
        """Pass over one comma to what follows it, if the window shows both: the usual case."""
        found = _NEXT.match(self._text, self._at)
        if found:
            self._advance(found.end())
        return found is not None

    def hold(self) -> None:
        """From here on the text is kept, until `release` returns it."""
        self._held_from = self._at

    @property
    def held(self) -> int:
        """Characters from `hold` to the end of the value decoded last."""
        return self._end - self._held_from

    def release(self) -> str:
        text = self._text[self._held_from : self._end]
        self._held_from = None
        return text

    def decode(self) -> Any:
        """Pass over the JSON value here and return it; BrokenArray names the line of a fault."""
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
            self._end = end
            return value

    def _cut_off(self, error: json.JSONDecodeError) -> bool:
        near_end = error.pos >= len(self._text) - _LONGEST_LITERAL
        return near_end or error.msg.startswith("Unterminated")

    def _advance(self, position: int) -> None:
        self.line += self._text.count("\n", self._at, position)
        self._at = position

    def _more(self) -> bool:
        """Forget what was passed, append at least as much as is pending: long rows stay linear."""
        keep = self._at if self._held_from is None else self._held_from
        fresh = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        self._text = self._text[keep:] + fresh
        self._at, self._end = self._at - keep, self._end - keep
        self._held_from = None if self._held_from is None else 0
        return bool(fresh)
