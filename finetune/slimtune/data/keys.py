"""Keys by which equal and nearly equal rows find each other: 8 bytes each, whatever the text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from slimtune.data.text import skeleton
from slimtune.data.turns import Message


@dataclass(frozen=True)
class Keys:
    """Of one conversation: its id, the key of its exact text, of its skeleton, of its question.

    Among ten million rows two different texts share a key of 64 bits with probability 3e-6.
    """

    id: str
    exact: int
    near: int
    question: int
    asked: bytes  # the skeleton of all that the user asks
    said: list[bytes]  # the skeleton of each turn; what the system says, every row may share


def keys_of(messages: Sequence[Message]) -> Keys:
    """Texts are compared turn by turn, roles included; the question is all of the user's turns."""
    exact = hashlib.sha256()
    bones: list[bytes] = []
    asked: list[bytes] = []
    said: list[bytes] = []
    for message in messages:
        role, text = message["role"], message["content"]
        exact.update(f"{role}\n{text}\n\n".encode())
        bare = skeleton(text)
        bones += (role.encode(), bare)
        if role != "system":
            said.append(bare)
        if role == "user":
            asked.append(bare)
    question = b"\n".join(asked)
    digest = exact.digest()
    return Keys(
        id=digest[:8].hex(),
        exact=int.from_bytes(digest[:8]),
        near=_key(b"\n".join(bones)),
        question=_key(question),
        asked=question,
        said=said,
    )


def _key(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8])
