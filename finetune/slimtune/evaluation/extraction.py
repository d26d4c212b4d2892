"""What counts in an answer that reasons before it decides: the number after ####, the letter.

A new pattern is one expression with one group here, and one word in `PATTERNS`.
"""

import re
import unicodedata

# Text is looked at in NFKC, so there are no full-width signs.
_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
_LETTER = r"([A-J])(?![A-Za-z'’])"
_DECIDED = r"(?:answer|option|choice)(?:\s+is)?|答案|选项|选择|故选|应选|选"

# Of each list the first expression that finds something decides, by its last find in the text.
PATTERNS: dict[str, tuple[re.Pattern[str], ...]] = {
    "whole": (),
    "number": (re.compile(_NUMBER),),
    "gsm8k": (re.compile(r"####\s*[$¥]?\s*" + _NUMBER),),
    "option": (
        re.compile(rf"(?i:{_DECIDED})\s*(?:是|为|应为|应该是)?\s*:?\s*[(\[]?\s*{_LETTER}"),
        re.compile(rf"^\W*{_LETTER}(?=\s*(?:[.)\]:、,。]|$))"),
        re.compile(rf"[(\[]\s*{_LETTER}\s*[)\]]"),
        re.compile(rf"(?<![A-Za-z]){_LETTER}\W*$"),
    ),
}


def extract(text: str, pattern: str) -> str | None:
    """The part of `text` that counts, None where the pattern finds none.

    Numbers come without thousands separators and closing zeros: `1,200.50` is `1200.5`.
    """
    if not PATTERNS[pattern]:
        return text
    plain = unicodedata.normalize("NFKC", text).replace("−", "-")
    for expression in PATTERNS[pattern]:
        found = expression.findall(plain)
        if found:
            return found[-1] if pattern == "option" else _plain_number(found[-1])
    return None


def _plain_number(written: str) -> str:
    number = written.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
