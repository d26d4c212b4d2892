"""Texts that grow side by side on a terminal, without moving the cursor."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from slimtune.wrapping import wrap

_BETWEEN = " │ "


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
