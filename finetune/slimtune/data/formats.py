"""The shapes that rows come in; each is one function from a row to its conversation.

A new shape is one function here and one word in `FORMATS`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Message = dict[str, str]
Row = Mapping[str, Any]

_QUESTION = ("question", "questions", "query", "问题", "提问")
_ANSWER = ("answer", "answers", "response", "回答", "答案")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can hold one; UTF-8 cannot
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class BadRow(ValueError):
    """A row that cannot become a conversation; its text is the reason."""


def alpaca(row: Row) -> list[Message]:
    """`instruction`, `output`; optional `input`, `system`, `history`: earlier [user, answer]."""
    row = _forgiving(row)
    instruction, extra = _text(row, "instruction"), _text(row, "input", required=False)
    question = f"{instruction}\n\n{extra}" if extra else instruction
    history = row.get("history") or []
    try:
        turns = [_turn(role, text) for pair in history for role, text in _paired(pair)]
    except (TypeError, ValueError) as error:
        raise BadRow('"history" is no list of [user, answer] pairs') from error
    return conversation([*_system(row), *turns, *_exchange(question, _text(row, "output"))])


def qa(row: Row) -> list[Message]:
    """A `question` and its `answer`, under the spellings of `_QUESTION` and `_ANSWER`."""
    row = _forgiving(row)
    question, answer = _text(row, *_QUESTION), _text(row, *_ANSWER)
    return conversation([*_system(row), *_exchange(question, answer)])


def messages(row: Row) -> list[Message]:
    """OpenAI's `messages`: a list of {"role", "content"}."""
    return conversation(_listed(row, "messages", "role", "content"))


def sharegpt(row: Row) -> list[Message]:
    """ShareGPT's `conversations`: a list of {"from": human|gpt|system, "value"}."""
    return conversation([*_system(row), *_listed(row, "conversations", "from", "value")])


FORMATS: dict[str, Callable[[Row], list[Message]]] = {
    "messages": messages,  # first: a prepared row has its Alpaca fields too
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "qa": qa,
}


def detect(rows: Sequence[Row]) -> str | None:
    """The shape most of `rows` have, the first in `FORMATS` on a tie; None if no row fits any."""
    fitting = {name: sum(fits(name, row) for row in rows) for name in FORMATS}
    best = max(fitting, key=fitting.__getitem__)
    return best if fitting[best] else None


def fits(name: str, row: Row) -> bool:
    try:
        FORMATS[name](row)
    except BadRow:
        return False
    return True


def conversation(turns: Sequence[Message]) -> list[Message]:
    """The turns themselves if a model can learn from them; BadRow with the reason otherwise."""
    spoken = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not spoken:
        raise BadRow("no turns")
    for index, turn in enumerate(spoken):
        expected = "assistant" if index % 2 else "user"
        if turn["role"] != expected:
            raise BadRow(f"turn {index + 1} is {turn['role']!r}, expected {expected!r}")
    if len(spoken) % 2:
        raise BadRow("the last turn is not the assistant's")
    return list(turns)


def columns(rows: Iterable[Row]) -> list[str]:
    """The column names of `rows`, in the order they first appear."""
    return list(dict.fromkeys(str(key) for row in rows for key in row))


def _forgiving(row: Row) -> dict[str, Any]:
    """Column names without their case and outer spaces: " Question" is question."""
    return {str(key).strip().lower(): value for key, value in row.items()}


def _text(row: Row, *names: str, required: bool = True) -> str:
    """The trimmed text of the first of `names` that the row has; numbers count as text."""
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        if required:
            raise BadRow(f'no "{names[0]}"')
        return ""
    text = _string(row[name], name)
    if required and not text:
        raise BadRow(f'empty "{name}"')
    return text


def _string(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f'"{name}" is not text')
    text = str(value).strip()
    if _HALF_CHARACTER.search(text):
        raise BadRow(f'"{name}" holds half a character (a lone surrogate)')
    return text


def _exchange(question: str, answer: str) -> list[Message]:
    return [_turn("user", question), _turn("assistant", answer)]


def _turn(role: str, text: Any) -> Message:
    content = _string(text, role)
    if not content:
        raise BadRow(f"empty {role} turn")
    return {"role": role, "content": content}


def _paired(pair: Sequence[Any]) -> Iterable[tuple[str, Any]]:
    return zip(("user", "assistant"), pair, strict=True)


def _system(row: Row) -> list[Message]:
    text = _text(row, "system", required=False)
    return [_turn("system", text)] if text else []


def _listed(row: Row, column: str, role_key: str, text_key: str) -> list[Message]:
    """The turns of a list column, with the roles that templates know."""
    turns = row.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow(f'no "{column}" list')
    return [_listed_turn(turn, role_key, text_key) for turn in turns]


def _listed_turn(turn: Row, role_key: str, text_key: str) -> Message:
    role = _ROLES.get(str(turn.get(role_key)).lower())
    if role is None:
        raise BadRow(f"unknown role {str(turn.get(role_key))[:40]!r}")
    return _turn(role, turn.get(text_key, ""))
