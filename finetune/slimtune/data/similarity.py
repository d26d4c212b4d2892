"""Rows that say nearly the same: J(A, B) = |A & B| / |A | B| of their sets of shingles.

A shingle is any 5 characters in a row of the normalised text, 3 where it has Chinese (or other
signs that stand for a syllable or a word: five of them are a whole question). A row keeps the low
byte of each of 128 min-hashes: two rows agree in one with probability J + (1 - J) / 256, so that

    J ~ (m / 128 - 1 / 256) / (1 - 1 / 256)    for m bytes in common, a standard error below 0.045

Only rows that agree in all r bytes of some band are compared; of pairs with similarity J that is
a share of 1 - (1 - J^r)^b, with b = 128 // r bands. r is the largest that leaves 99 % at the
threshold: at 0.8, 21 bands of 6. Source: Broder, "On the resemblance and containment of
documents", 1997; one byte of each hash: Li and König, "b-Bit Minwise Hashing", 2010.

Before that stand the keys by which equal rows find each other (8 bytes each), the normalised text
(case, width, spacing and punctuation forgiven; of a question also greetings and thanks), and the
language of a text.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from slimtune.config.data import Data
from slimtune.data.turns import Message
from slimtune.packages import is_installed

SIGNATURE_SIZE = 128  # bytes a row, and hashes
_SHINGLE, _DENSE_SHINGLE = 5, 3
_SEED = 42  # not the split's: another split judges the same rows alike
_FOUND = 0.99
_MOST_COMPARED = 64  # earlier rows of a band that a row is compared with; patterned rows have more
_AT_ONCE = 1 << 16  # rows compared: 8 MB of each side
_PRIME = np.uint64(0x100000001B3)  # FNV-1a


def repeats_from(settings: Data) -> float:
    """The similarity from which on conversations of one split repeat each other; 0: none do."""
    return settings.similarity if settings.duplicates == "near" and _has_hashes() else 0.0


def leaks_from(settings: Data) -> float:
    """The similarity from which on a training question leaks; 0: equal ones alone do."""
    asked = (settings.leak_similarity or settings.similarity) if settings.drop_leaks else 0.0
    return asked if asked and _has_hashes() else 0.0


@cache  # asked of every row
def _has_hashes() -> bool:
    """Whether rensa is installed: without it equal rows alone are found, as `packages` tells."""
    return is_installed("rensa")


def signature(texts: Iterable[bytes]) -> bytes:
    """The 128 bytes of normalised texts (see `text.skeleton`), taken as one.

    A row at a time: the library's batches start threads, which no process may fork beside.
    """
    from rensa import RMinHash

    hashes = RMinHash(num_perm=SIGNATURE_SIZE, seed=_SEED)
    hashes.update(sorted(shingles(b"\n".join(texts))))
    return np.array(hashes.digest(), np.uint32).astype(np.uint8).tobytes()


def shingles(skeleton: bytes) -> set[str]:
    """The pieces by which a normalised text is compared; one even of an empty text."""
    text = skeleton.decode("utf-8", "surrogatepass")
    length = _SHINGLE if text.isascii() or not _DENSE.search(text) else _DENSE_SHINGLE
    return {text[at : at + length] for at in range(max(len(text) - length + 1, 1))}


def estimate_similarity(signatures: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The similarity of pairs of rows, given by their places in the [rows, 128] signatures."""
    common = np.empty(len(ours), np.float32)
    for at in range(0, len(ours), _AT_ONCE):
        pairs = slice(at, at + _AT_ONCE)
        common[pairs] = (signatures[ours[pairs]] == signatures[theirs[pairs]]).sum(axis=1)
    return np.maximum((common / SIGNATURE_SIZE - 1 / 256) / (1 - 1 / 256), 0)


def width(threshold: float) -> int:
    """Bytes in a band: the most with which 99 % of the pairs at the threshold are compared."""
    widths = range(SIGNATURE_SIZE, 0, -1)
    return next((r for r in widths if 1 - (1 - threshold**r) ** (SIGNATURE_SIZE // r) >= _FOUND), 1)


def bands(signatures: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """One key of 64 bits a row, band by band."""
    columns = width(threshold)
    for start in range(0, SIGNATURE_SIZE - columns + 1, columns):
        keys = np.full(len(signatures), 0xCBF29CE484222325, np.uint64)
        for column in range(start, start + columns):
            keys = (keys ^ signatures[:, column]) * _PRIME
        yield keys


def compare_signatures(
    keys: np.ndarray, settle: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Call `settle(later, earlier)` on places with equal keys; true where `later` is done with.

    In each group the first row meets all others, the first of those left meets the rest, and so
    on, at most 64 times.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    for _ in range(_MOST_COMPARED):
        starts = np.ones(len(ordered), bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        leads = np.maximum.accumulate(np.where(starts, np.arange(len(ordered)), 0))
        later, first = order[~starts], order[leads[~starts]]
        if not len(later):
            return
        rest = ~settle(later, first)
        order, ordered = later[rest], ordered[~starts][rest]


@dataclass(frozen=True)
class Keys:
    """Of one conversation: its id, the key of its exact text, of its skeleton, of its question and
    of its answers.

    Among ten million rows two different texts share a key of 64 bits with probability 3e-6.
    """

    id: str
    exact: int
    near: int
    question: int
    answer: int
    asked: bytes  # the skeleton of all that the user asks, greetings and thanks aside
    said: list[bytes]  # the skeleton of each turn; what the system says, every row may share


def keys_of(messages: Sequence[Message]) -> Keys:
    """Texts are compared turn by turn, roles included; the question is all of the user's turns,
    without the courtesies around them: "您好，怎么退货？谢谢" asks what "怎么退货" asks.
    """
    exact = hashlib.sha256()
    bones: list[bytes] = []
    asked: list[bytes] = []
    said: list[bytes] = []
    answered: list[bytes] = []
    for message in messages:
        role, text = message["role"], message["content"]
        exact.update(f"{role}\n{text}\n\n".encode())
        bare = skeleton(text)
        bones += (role.encode(), bare)
        if role != "system":
            said.append(bare)
        if role == "assistant":
            answered.append(bare)
        if role == "user":
            core = without_courtesies(text)
            asked.append(bare if core == text else skeleton(core))
    question = b"\n".join(asked)
    digest = exact.digest()
    return Keys(
        id=digest[:8].hex(),
        exact=int.from_bytes(digest[:8]),
        near=_key(b"\n".join(bones)),
        question=_key(question),
        answer=_key(b"\n".join(answered)),
        asked=question,
        said=said,
    )


def asked_in(messages: Sequence[Message]) -> bytes:
    """`Keys.asked` of a conversation, without the other keys."""
    asked = (message["content"] for message in messages if message["role"] == "user")
    return b"\n".join(skeleton(without_courtesies(text)) for text in asked)


def _key(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8])


_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
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


# Around a question, not in it. Chinese ones stand without a mark too ("怎么退货谢谢"); English ones
# need a word's end before the question and a mark after it ("What is the Thai for thanks?").
_GREETING = re.compile(
    r"(?:[\W_]*(?:(?:客服)?[您你]好(?:[啊呀]|(?![吗么嘛]))|[早晚]上好|[上中下]午好|哈[喽啰罗]|嗨|在[吗么](?=\W)"
    r"|亲(?=\W)|请问(?:一?下)?|打扰(?:一下|了)|(?:麻烦|我?想(?:请|要)?)问(?:一?下)|问一下"
    r"|(?:hi|hello|hey|greetings|excuse me|good (?:morning|afternoon|evening|day))\b"
    r"(?: there| team| all| everyone\b)?))+[\W_]*",
    re.IGNORECASE,
)
_THANKS = re.compile(
    r"(?:[\W_]*(?:(?:非常)?(?:谢谢|多谢|感谢)|拜托了?|辛苦了|麻烦了)[您你了啦哈呀啊]*"
    r"|[^\w\s]\s*(?:(?:many )?thanks|thank you|thx|please|kind regards|best regards)\b"
    r"(?: (?:very much|so much|a lot|in advance|for your help))?)+[\W_]*$",
    re.IGNORECASE,
)
_THANKED = ("谢", "拜托", "辛苦", "麻烦", "than", "thx", "plea", "rega")  # most texts have none
_LONGEST_THANKS = 48  # characters of a text's end that are looked at


def without_courtesies(text: str) -> str:
    """The text without the greeting before it and the thanks after it; whole if it is only that."""
    greeting = _GREETING.match(text)
    start = greeting.end() if greeting else 0
    end = text[-_LONGEST_THANKS:].lower()
    thanks = None
    if any(word in end for word in _THANKED):
        thanks = _THANKS.search(text, max(len(text) - _LONGEST_THANKS, start))
    core = text[start : thanks.start() if thanks else len(text)]
    return core if any(map(str.isalnum, core)) else text


def language(text: str) -> str:
    """`zh`, `en` or `mixed` by the share of Chinese among the letters; `other` without any."""
    if text.isascii():
        return "en" if _ASCII_LETTER.search(text) else "other"
    chinese, latin = (sum(map(len, runs.findall(text))) for runs in (_CJK, _LATIN))
    if not chinese + latin:
        return "other"
    share = chinese / (chinese + latin)
    return "zh" if share > 0.8 else "en" if share < 0.2 else "mixed"
