"""A text that grows on a terminal: no line ends inside a word."""

from slimtune.wrapping import parts_of, wrap


class Growing:
    """`add` a piece; what no later piece can change is given out: all but the last word.

    That one may still grow beyond the end of its line. `width` are the terminal's cells, None
    where there is none: then all is given as it comes.
    """

    def __init__(self, width: int | None) -> None:
        self.width, self.text = width, ""
        self._given = ""

    def add(self, piece: str) -> str:
        """What this piece completes."""
        self.text += piece
        if self.width is None:
            return piece
        *certain, _ = parts_of(self.text) or [""]
        return self._new("".join(certain))

    def end(self) -> str:
        """The rest."""
        return "" if self.width is None else self._new(self.text)

    def _new(self, text: str) -> str:
        lines = "\n".join(wrap(text.rstrip(), self.width, whole_words=True))
        new = lines[len(self._given) :]
        self._given = max(lines, self._given, key=len)
        return new
