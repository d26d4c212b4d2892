"""Markdown from foreign text and figures: inert, whatever a row or a model says."""

import html
import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#!])")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
_LONGEST = 400


def plain(text: str, longest: int = _LONGEST) -> str:
    """`text` as itself in a line of Markdown: no HTML, link, image, table cell or heading.

    Line ends become `<br>`, control and direction characters U+FFFD; beyond `longest` characters
    it is cut with an ellipsis.
    """
    shown = text if len(text) <= longest else text[:longest] + "…"
    shown = CONTROL.sub("\ufffd", shown)
    escaped = _SPECIAL.sub(r"\\\1", html.escape(shown, quote=False))
    unlinked = escaped.replace("://", "&#58;//").replace("www.", "www&#46;")
    return "<br>".join(line.strip() for line in unlinked.strip().splitlines())


def code(text: str) -> str:
    """`text` in a code span, with a fence longer than any run of backticks inside it."""
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * (max(runs, default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures; cells come escaped."""
    rule = ["---", *("---:" for _ in headers[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headers, rule, *rows])


def anchor(heading: str) -> str:
    """The name under which a heading is linked to: GitHub's, lower case and dashes."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
