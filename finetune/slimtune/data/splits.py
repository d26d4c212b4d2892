"""Train, validation or test by a hash of what is asked: adding rows never moves the old ones."""

import hashlib
from collections.abc import Sequence

from slimtune.data.formats import Message
from slimtune.data.text import normalise

SPLITS = ("train", "validation", "test")


def split_of(key: str, ratios: tuple[float, float, float], seed: int) -> str:
    """The split whose share of [0, 1) holds the first 53 bits of sha256(seed, key) / 2^53.

    `ratios` are the shares of train, validation and test, of any positive sum. Equal keys fall
    together, whatever other rows there are.
    """
    digest = hashlib.sha256(f"{seed}\n{key}".encode(errors="surrogatepass")).digest()
    position = (int.from_bytes(digest[:8]) >> 11) / 2**53 * sum(ratios)
    train, validation, _ = ratios
    if position < train:
        return "train"
    return "validation" if position < train + validation else "test"


def prompt_key(messages: Sequence[Message]) -> str:
    """All that the user asks, normalised: the same question never lands in two splits."""
    asked = (message["content"] for message in messages if message["role"] == "user")
    return normalise("\n".join(asked))
