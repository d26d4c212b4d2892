"""Text in lines of a terminal's cells: words break at spaces, Chinese anywhere it may."""

import re
from collections.abc import Iterator

from rich.cells import cell_len, chop_cells

# Characters between which a line may break, and the signs that stay with their neighbour: no line
# starts with a comma or ends with an opening bracket.
_WIDE = "\u2e80-\u2fdf\u3003-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff"
_CLOSING = "，。、；：？！）》」』】〉〕％…”’"
_OPENING = "（《「『【〈〔"
_WORD = rf"[{_OPENING}]*(?:(?![{_OPENING}{_CLOSING}])[{_WIDE}]|(?:(?![{_WIDE}{_CLOSING}])\S)+)"
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
    for part in _PARTS.findall(_UNSEEN.sub("", text.replace("\t", _TAB))):
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
        *full, line = chop_cells(line + part, width) if cut else [line + part]
        yield from full
    yield line.rstrip()
