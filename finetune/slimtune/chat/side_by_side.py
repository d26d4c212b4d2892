"""Texts that grow side by side on a terminal, without moving the cursor."""

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

from slimtune.evaluation.measures import CJK

_PARTS = re.compile(rf"\n|[^\S\n]+|[{CJK}]|(?:(?![{CJK}])\S)+")
_BETWEEN = " │ "
# No cell is counted for them, and a terminal moves its cursor.
_TAB = "    "
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class SideBySide:
    """`add` a piece to a column; a line is given out as soon as no column can change it any more.

    Lines are greedily wrapped, so that only the last one of a growing text is open: words break at
    spaces, Chinese anywhere, and a wide character counts as two.
    """

    def __init__(self, titles: Sequence[str], width: int) -> None:
        self.width = (width - len(_BETWEEN) * (len(titles) - 1)) // len(titles)
        self.texts = [""] * len(titles)
        self.open = [True] * len(titles)
        self.given = 0
        cut = [set_cell_size(title, min(cell_len(title), self.width)) for title in titles]
        self.head = self._line(cut) + self._line(["─" * self.width] * len(titles))

    def add(self, column: int, piece: str) -> str:
        """The lines that this piece completes."""
        self.texts[column] += piece
        return self._ready()

    def end(self, column: int) -> str:
        """The lines that the end of this column completes."""
        self.open[column] = False
        return self._ready()

    def _ready(self) -> str:
        wrapped = [list(wrap(text, self.width)) for text in self.texts]
        growing = zip(wrapped, self.open, strict=True)
        certain = [len(lines) - 1 if still else None for lines, still in growing]
        last = min([n for n in certain if n is not None], default=max(map(len, wrapped)))
        rows = [
            [lines[row] if row < len(lines) else "" for lines in wrapped]
            for row in range(self.given, last)
        ]
        self.given = max(self.given, last)
        return "".join(map(self._line, rows))

    def _line(self, cells: list[str]) -> str:
        padded = [cell + " " * (self.width - cell_len(cell)) for cell in cells]
        return _BETWEEN.join(padded).rstrip() + "\n"


def wrap(text: str, width: int) -> Iterator[str]:
    """The lines of `text` at most `width` cells wide; always at least one."""
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
        *full, line = chop_cells(line + part, width) if cell_len(part) > width else [line + part]
        yield from full
    yield line.rstrip()
