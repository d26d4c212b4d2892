"""Text as metrics see it: words of mixed Chinese and English, and when two answers are equal."""

import re
import unicodedata

# Han, kana and the marks written like them: scripts without spaces, so each character is a word.
CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{CJK}]|(?:(?![{CJK}])[^\W_])+")
_BESIDE_CJK = re.compile(rf"\s+(?=[{CJK}])|(?<=[{CJK}])\s+")
_MARKS = "".join(
    re.escape(chr(code))
    for code in range(0x10000)
    if unicodedata.category(chr(code)).startswith("P") and chr(code) not in "%.-"
)
# The point of 3.5 and the sign of -5 change an answer; a full stop, a dash or a comma does not.
_PUNCTUATION = re.compile(rf"[{_MARKS}]|\.(?!\d)|(?<=[a-z])\.|-(?!\.?\d)|(?<=[a-z0-9])-")


def words(text: str) -> list[str]:
    """The tokens of ROUGE: each CJK character, each run of other letters and digits.

    Width and case are folded (NFKC). On plain English these are rouge_score's tokens without
    stemming; on Chinese rouge_score has none.
    """
    return _WORD.findall(_folded(text))


def normalise(text: str) -> str:
    """`text` without what does not matter to an answer: width, case, punctuation and spacing.

    Punctuation separates (`1,2` is `1 2`, not `12`), except the decimal point and a number's sign.
    Symbols (`<`, `+`, `%`) are kept. A text of nothing but punctuation stays as it is.
    """
    folded = _folded(text)
    spaced = _BESIDE_CJK.sub("", _PUNCTUATION.sub(" ", folded))
    return " ".join(spaced.split()) or folded.strip()


def repeats(text: str) -> bool:
    """Whether `text` ends in a loop: one phrase at least four times over, 16 characters or more.

    The usual sign of a model that has not learned to stop, or was damaged by pruning or rounding.
    """
    tail = "".join(text.split())[-1024:]
    for period in range(1, len(tail) // 4 + 1):
        loop = max(4 * period, 16)
        if loop <= len(tail) and tail[-loop:-period] == tail[-loop + period :]:
            return True
    return False


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
