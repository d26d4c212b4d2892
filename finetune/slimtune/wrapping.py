"""Text in lines of a terminal's cells: words break at spaces, Chinese anywhere it may."""

import re
from collections.abc import Iterator

from rich.cells import cell_len, chop_cells

# Characters between which a line may break, and the signs that stay with their neighbour: no line
# starts with a comma or ends with an opening bracket.
_WIDE = "\u2e80-\u2fdf\u3003-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff"
_CLOSING = "，。、；：？！）》」』】〉〕〗］｝％…”’"
_OPENING = "（《「『【〈〔〖［｛“‘"
_NARROW = r",.;:?!)\]}%"  # what closes behind a Chinese character where no wide sign is typed
_WIDE_WORD = rf"(?![{_OPENING}{_CLOSING}])[{_WIDE}][{_NARROW}]*"
_WORD = rf"[{_OPENING}]*(?:{_WIDE_WORD}|(?:(?![{_WIDE}{_OPENING}{_CLOSING}])\S)+)"
_PARTS = re.compile(rf"\n|[^\S\n]+|{_WORD}[{_CLOSING}]*|\S")
# No cell is counted for them, and a terminal moves its cursor.
_TAB = "    "
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def wrap(text: str, width: int, *, whole_words: bool = False) -> Iterator[str]:
    """The lines of `text` at most `width` cells wide; always at least one.

    They are filled from the left, so that only the last line of a growing text is open. A word that
    is wider than a line is cut; with `whole_words` it has a line that is too long, as a path that
    is to be copied must.
    """
    line = ""
    for part in parts_of(text):
        if part == "\n":
            yield line.rstrip()
            line = ""
            continue
        if line and cell_len(line + part.rstrip()) > width:
            yield line.rstrip()
            line = ""
        if part.isspace() and not line:
            continue  # no line starts with the space it was broken at
        cut = cell_len(part) > width and not whole_words
        *full, line = _cut(line + part, width) if cut else [line + part]
        yield from full
    yield line.rstrip()


def parts_of(text: str) -> list[str]:
    """Words with what closes behind them, blanks and line ends, as they stand on a terminal."""
    return _PARTS.findall(_UNSEEN.sub("", text.replace("\t", _TAB)))


def _cut(text: str, width: int) -> list[str]:
    """A word in pieces of a line's width: what may not begin a line takes a character along."""
    *full, last = chop_cells(text, width)
    if full and last[0] in _CLOSING and len(full[-1]) > 1:
        full[-1], last = full[-1][:-1], full[-1][-1] + last
    return [*full, last]
