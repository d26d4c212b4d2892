"""What two texts share once case, width and spacing are forgiven, and the language a text is in."""

import re
import unicodedata

_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")


def normalise(text: str) -> str:
    """NFKC (full-width digits, ligatures), casefold, runs of whitespace as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def language(text: str) -> str:
    """`zh`, `en` or `mixed` by the share of Chinese among the letters; `other` without any."""
    chinese, latin = len(_CJK.findall(text)), len(_LATIN.findall(text))
    if not chinese + latin:
        return "other"
    share = chinese / (chinese + latin)
    return "zh" if share > 0.8 else "en" if share < 0.2 else "mixed"
