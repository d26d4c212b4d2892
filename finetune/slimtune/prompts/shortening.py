"""Conversations made to fit a number of tokens, as messages: what is left is a whole conversation.

Cutting ids instead would cut through the template: `[INST] <<SYS>>` would lose its start, and the
model would learn a prompt that it never meets when it serves. No answer is ever cut.
"""

from collections.abc import Callable, Sequence

from slimtune.prompts.rendering import Message

Size = Callable[[Sequence[Message]], int]  # messages -> tokens under the template


def shorten(messages: Sequence[Message], size: Size, limit: int) -> list[Message] | None:
    """The conversation in at most `limit` tokens; its last answer is kept to the end.

    First the oldest exchanges go, then the start of the last question, and the system message only
    when else nothing of that question would be left. None where the answer with one character of
    question does not fit. Messages end with the assistant's.
    """
    system, turns = _opening(messages)
    for start in range(0, len(turns) - 1, 2):
        shorter = [*system, *turns[start:]]
        if size(shorter) <= limit:
            return shorter
    for opening in [system, []] if system else [[]]:
        asked = _cut_question(opening, turns[-2:], size, limit)
        if asked is not None:
            return asked
    return None


def split(messages: Sequence[Message], size: Size, limit: int) -> list[list[Message]] | None:
    """The exchanges in as few conversations as fit, in order, each under the system message.

    An exchange that alone is too long is shortened as by `shorten`; None where even that fails.
    """
    system, turns = _opening(messages)
    parts: list[list[Message]] = [[]]
    for start in range(0, len(turns), 2):
        exchange = turns[start : start + 2]
        if parts[-1] and size([*system, *parts[-1], *exchange]) > limit:
            parts.append([])
        parts[-1] += exchange
    fitting = [shorten([*system, *part], size, limit) for part in parts]
    return None if None in fitting else fitting


def _opening(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if any, and the turns after it."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return list(messages[:first]), list(messages[first:])


def _cut_question(
    opening: list[Message], exchange: list[Message], size: Size, limit: int
) -> list[Message] | None:
    """The exchange with as much of its question's end as fits, found by halving."""
    if len(exchange) < 2:
        return None
    question, answer = exchange
    text = question["content"].strip()

    def ending(characters: int) -> list[Message]:
        cut = text[len(text) - characters :].lstrip()
        return [*opening, Message(role=question["role"], content=cut), answer]

    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if size(ending(middle)) <= limit else (fits, middle)
    return ending(fits) if fits else None
