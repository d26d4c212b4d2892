"""The shapes that rows come in; each is one function from a row to its conversation.

A new shape is one function here and one word in `FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slimtune.data.turns import BadRow, Message, as_text, exchange, listed_turns, turn

Row = Mapping[str, Any]

QUESTION = ("question", "questions", "query", "问题", "提问")
ANSWER = ("answer", "answers", "response", "回答", "答案")
COMPLETION = ("completion", "response")


def alpaca(row: Row) -> list[Message]:
    """`instruction`, `output`; optional `input`, `system`, `history`: earlier [user, answer].

    Where `input` and `output` are lists, they are the two sides of one conversation.
    """
    if isinstance(row.get("input"), list) and isinstance(row.get("output"), list):
        return _two_sides(row)
    instruction, extra = _text(row, "instruction"), _text(row, "input", required=False)
    question = f"{instruction}\n\n{extra}" if extra else instruction
    return [*_system(row), *_history(row), *exchange(question, _text(row, "output"))]


def qa(row: Row) -> list[Message]:
    """A `question` and its `answer`, under the spellings of `QUESTION` and `ANSWER`."""
    question, answer = _text(row, *QUESTION), _text(row, *ANSWER)
    return [*_system(row), *_history(row), *exchange(question, answer)]


def messages(row: Row) -> list[Message]:
    """OpenAI's `messages`: a list of {"role", "content"}."""
    return [*_system(row), *listed_turns(row, "messages")]


def sharegpt(row: Row) -> list[Message]:
    """ShareGPT's `conversations`: a list of {"from": human|gpt|system, "value"}."""
    return [*_system(row), *listed_turns(row, "conversations")]


def prompt_completion(row: Row) -> list[Message]:
    """A `prompt` and its `completion`: two texts, or two lists of {"role", "content"}."""
    if isinstance(row.get("prompt"), list):
        return [*listed_turns(row, "prompt"), *listed_turns(row, "completion")]
    return [*_system(row), *exchange(_text(row, "prompt"), _text(row, *COMPLETION))]


FORMATS: dict[str, Callable[[Row], list[Message]]] = {
    "messages": messages,  # first: a prepared row has its Alpaca fields too
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "qa": qa,
    "prompt_completion": prompt_completion,
}
# What a user may map columns to, shape by shape: the required ones, which suggestions name.
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "qa": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
}


def detect(rows: Sequence[Row]) -> str | None:
    """The shape most of `rows` have, the first in `FORMATS` on a tie; None if no row fits any."""
    fitting = {name: sum(fits(name, row) for row in rows) for name in FORMATS}
    best = max(fitting, key=fitting.__getitem__)
    return best if fitting[best] else None


def fits(name: str, row: Row) -> bool:
    """Whether the row has what this shape needs; turns in a wrong order are cleaning's matter."""
    try:
        return bool(FORMATS[name](row))
    except BadRow:
        return False


def _text(row: Row, *names: str, required: bool = True) -> str:
    """The trimmed text of the first of `names` that the row has; numbers count as text."""
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        if required:
            raise BadRow(f'no "{names[0]}"')
        return ""
    text = as_text(row[name], name)
    if required and not text:
        raise BadRow(f'empty "{name}"')
    return text


def _system(row: Row) -> list[Message]:
    text = _text(row, "system", required=False)
    return [turn("system", text)] if text else []


def _history(row: Row) -> list[Message]:
    history = row.get("history") or []
    try:
        pairs = [dict(zip(("user", "assistant"), pair, strict=True)) for pair in history]
    except (TypeError, ValueError) as error:
        raise BadRow('"history" is no list of [user, answer] pairs') from error
    return [turn(role, text) for pair in pairs for role, text in pair.items()]


def _two_sides(row: Row) -> list[Message]:
    asked, answered = row["input"], row["output"]
    if len(asked) != len(answered) or not asked:
        raise BadRow(f'{len(asked)} texts in "input", {len(answered)} in "output"')
    turns = [one for pair in zip(asked, answered, strict=True) for one in exchange(*pair)]
    if instruction := _text(row, "instruction", required=False):
        turns[0] = turn("user", f"{instruction}\n\n{turns[0]['content']}")
    return [*_system(row), *_history(row), *turns]
