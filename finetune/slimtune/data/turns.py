"""Turns of a conversation: read under their many names, then made fit for training.

First a turn's text and role, and the order that a model can learn; then the cleaning steps, each of
which gives back what it was given where there is nothing to clean.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can hold one; UTF-8 cannot
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "question", "用户"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "answer", "助手"),
        "assistant",
    ),
    **dict.fromkeys(("bing", "bard", "claude", "gemini"), "assistant"),
    "system": "system",
}


class BadRow(ValueError):
    """A row that cannot become a conversation; its text is the reason."""


def as_text(value: Any, name: str) -> str:
    """The value as trimmed text with plain line ends; BadRow if it is neither text nor a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f'"{name}" is not text')
    text = str(value).strip()
    if "\r" in text:  # Windows' line ends: a prompt typed elsewhere would have other tokens
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii() and _HALF_CHARACTER.search(text):
        raise BadRow(f'"{name}" holds half a character (a lone surrogate)')
    return text


def turn(role: str, text: Any) -> Message:
    content = as_text(text, role)
    if not content:
        raise BadRow(f"empty {role} turn")
    return {"role": role, "content": content}


def exchange(question: Any, answer: Any) -> list[Message]:
    return [turn("user", question), turn("assistant", answer)]


def listed_turns(row: Mapping[str, Any], column: str) -> list[Message]:
    """The turns of a list column; role and text under OpenAI's or ShareGPT's names.

    A system message without words is none.
    """
    turns = row.get(column)
    if not isinstance(turns, list) or not all(isinstance(one, dict) for one in turns):
        raise BadRow(f'no "{column}" list')
    listed = [_listed_turn(one) for one in turns]
    return [one for one in listed if one]


def _listed_turn(listed: Mapping[str, Any]) -> Message | None:
    name = str(listed.get("from", listed.get("role")))
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise BadRow(f"unknown role {name[:40]!r}")
    text = listed.get("value", listed.get("content", ""))
    return None if role == "system" and text in (None, "") else turn(role, text)


def trimmed(turns: Sequence[Message]) -> list[Message]:
    """The turns from the user's first to the assistant's last; a system message stays in front."""
    opening = 1 if turns and turns[0]["role"] == "system" else 0
    start, end = opening, len(turns)
    while start < end and turns[start]["role"] == "assistant":
        start += 1
    while end > start and turns[end - 1]["role"] == "user":
        end -= 1
    return [*turns[:opening], *turns[start:end]]


def require_order(turns: Sequence[Message]) -> None:
    """BadRow with the reason unless user and assistant take turns and the assistant is last."""
    spoken = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not spoken:
        raise BadRow("no turns")
    for index, one in enumerate(spoken):
        expected = "assistant" if index % 2 else "user"
        if one["role"] != expected:
            raise BadRow(f"turn {index + 1} is {one['role']!r}, expected {expected!r}")
    if len(spoken) % 2:
        raise BadRow("the last turn is not the assistant's")


# Texts that a tokenizer would read as control tokens: they could end a turn or open a false one.
_SPECIAL = re.compile(
    r"</?s>|<unk>|<pad>|<bos>|<eos>|<\|[\w-]+\|>|<</?SYS>>|\[/?INST\]|<(?:start|end)_of_turn>"
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
# UTF-8 read as Latin-1 or CP1252 (Ã©, â€™, ï¼Œ), twice as GBK (锟斤拷), the mark of a lost byte.
_MOJIBAKE = re.compile(
    "\u00c3[\u0080-\u00bf\u0192\u201a]|\u00e2\u20ac|\u00e2\u0080|\u00ef\u00bc|\u00ef\u00bb\u00bf"
    "|\u00e6[\u0080-\u00bf]|\u951f\u65a4\u62f7|\ufffd"
)


def neutralised(text: str) -> str:
    """The text with a space after the first sign of each literal control token: `< s>`, `[ INST]`.

    A visible change on purpose: the rest stays readable, and no tokenizer matches it any more.
    """
    if "<" not in text and "[" not in text:
        return text
    return _SPECIAL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def without_special_tokens(messages: Sequence[Message]) -> list[Message]:
    return [{**one, "content": neutralised(one["content"])} for one in messages]


def oddities(messages: Sequence[Message]) -> list[str]:
    """What looks broken in the texts: "html_entities", "mojibake". Reported, never changed."""
    found = []
    if any("&" in one["content"] and _ENTITY.search(one["content"]) for one in messages):
        found.append("html_entities")
    texts = (one["content"] for one in messages)
    if any(not text.isascii() and _MOJIBAKE.search(text) for text in texts):
        found.append("mojibake")
    return found
