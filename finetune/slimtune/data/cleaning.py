"""Equal rows and leaks, found by text with case, width and spacing forgiven."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from slimtune.data.formats import Message
from slimtune.data.splits import prompt_key
from slimtune.data.text import normalise


def fingerprint(messages: Sequence[Message]) -> str:
    """64 hex digits, equal for conversations with equal roles and normalised texts."""
    turns = [f"{message['role']}\n{normalise(message['content'])}" for message in messages]
    return hashlib.sha256("\n\n".join(turns).encode()).hexdigest()


def without_leaks(
    splits: Mapping[str, Sequence[dict[str, Any]]],
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """The splits without the rows whose question a more precious split asks too, and those rows.

    Test is the most precious, then validation. Splitting by question leaves no leak; splitting by
    a group column can, where two groups ask the same.
    """
    precious: set[str] = set()
    clean: dict[str, list[dict[str, Any]]] = {name: [] for name in splits}
    leaked: list[dict[str, Any]] = []
    for name in ("test", "validation", "train"):
        keys = [prompt_key(row["messages"]) for row in splits[name]]
        for row, key in zip(splits[name], keys, strict=True):
            (leaked if key in precious else clean[name]).append(row)
        precious.update(keys)
    return clean, leaked
