"""What two texts share once case, width, spacing and punctuation are forgiven; their language."""

import re
import unicodedata

_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_ASCII_LETTER = re.compile(r"[A-Za-z]")
# Marks of sentences, not of formulas: "12 - 3" is another question than "12 + 3".
_FORGIVEN = b" \t\n\r\v\f.,;:!?'\"`"
_FORGIVEN_WIDE = re.compile(
    "[\u2018-\u201f\u2026\u2013\u2014\u3001\u3002\u3008-\u3011\u00b7\u200b\ufeff]+"
)
_WITHIN_A_NUMBER = re.compile(r"(?<=\d)[.,:](?=\d)")  # 1.5 is not 15
_LOWER = bytes(range(256)).lower()


def skeleton(text: str) -> bytes:
    """Letters, digits and operators alone: equal for texts that differ in case, width of
    characters (NFKC: full-width digits, ligatures), spaces and sentence punctuation.

    Text without a single letter or digit ("???") is all punctuation and stays as it is.
    """
    plain = text if text.isascii() else _narrow(text)
    plain = _WITHIN_A_NUMBER.sub("_", plain)
    bones = plain.encode("utf-8", "surrogatepass").translate(_LOWER, _FORGIVEN)
    return bones or text.encode("utf-8", "surrogatepass")


def _narrow(text: str) -> str:
    return _FORGIVEN_WIDE.sub("", unicodedata.normalize("NFKC", text).casefold())


def language(text: str) -> str:
    """`zh`, `en` or `mixed` by the share of Chinese among the letters; `other` without any."""
    if text.isascii():
        return "en" if _ASCII_LETTER.search(text) else "other"
    chinese, latin = (sum(map(len, runs.findall(text))) for runs in (_CJK, _LATIN))
    if not chinese + latin:
        return "other"
    share = chinese / (chinese + latin)
    return "zh" if share > 0.8 else "en" if share < 0.2 else "mixed"
