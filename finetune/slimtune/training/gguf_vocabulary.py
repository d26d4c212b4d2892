"""Which bytes each id of a GGUF file stands for, and whether they are those of the student's ids.

llama.cpp is asked in ids, so a teacher in a file must have the very same bytes for each of them. A
student that was trimmed has other ids; its record leads to those of the file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf import TokenType

from slimtune.inference.gguf_tokenizer import GgufTokens, tokens_of
from slimtune.models.gguf_header import GgufHeader, read_gguf

_FILLING = re.compile(rb"\[PAD\d+\]")  # llama.cpp's converter's name for an id without a token


def difference(
    header: GgufHeader, student: Mapping[str, int], ids: Sequence[int] | None = None
) -> str | None:
    """What tells the two vocabularies apart, in words; None where every id is the same bytes.

    `student` is token -> id. `ids` are the file's for the student's, in their order: then it may
    have more tokens.
    """
    tokens = tokens_of(header)
    theirs = [_bytes(header, token) for token in tokens.tokens[: _named(tokens)]]
    there = range(max(student.values()) + 1) if ids is None else ids
    for text, index in sorted(student.items(), key=lambda one: one[1]):
        place = there[index] if index < len(there) else len(theirs)
        if place >= len(theirs):
            return f"the student's token {index}, {text!r}, is none of its {len(theirs):,}"
        if theirs[place] != _bytes(header, text.encode("utf-8", "surrogatepass")):
            told = theirs[place].decode("utf-8", "replace")
            return f"token {place} is {told!r} there and {text!r} for the student"
    if there[-1] >= len(tokens.tokens):
        return f"the student's token {len(there) - 1} is none of its {len(theirs):,}"
    more = len(theirs) - len(there)
    return f"it has {more:,} tokens that the student lacks" if ids is None and more > 0 else None


def _bytes(header: GgufHeader, token: bytes) -> bytes:
    """A token as what it stands for: SentencePiece writes its blank in more than one way.

    All else is one to one: byte-level BPE's letters for bytes, `<0x0A>`, the names of control
    tokens.
    """
    if header.get("tokenizer.ggml.model", str, "") == "gpt2":
        return token
    return token.replace("\u2581".encode(), b" ")


def _named(tokens: GgufTokens) -> int:
    """How many tokens there are without those at the end that fill up the matrix."""
    count = len(tokens.tokens)
    while count and (
        tokens.types[count - 1] == TokenType.UNUSED or _FILLING.fullmatch(tokens.tokens[count - 1])
    ):
        count -= 1
    return count


def tokens_in(file: Path) -> int:
    """How many tokens it speaks of."""
    return _named(tokens_of(read_gguf(file)))
