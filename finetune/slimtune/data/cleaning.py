"""Exact duplicates, up to case, width and spacing: the second of two equal rows goes."""

import hashlib
from collections.abc import Sequence

from slimtune.data.formats import Message
from slimtune.data.text import normalise


def fingerprint(messages: Sequence[Message]) -> str:
    """32 hex digits that are equal for conversations with equal roles and normalised texts."""
    turns = [f"{message['role']}\n{normalise(message['content'])}" for message in messages]
    return hashlib.sha256("\n\n".join(turns).encode()).hexdigest()[:32]
