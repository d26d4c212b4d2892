"""Turns of a conversation: read under their many names, then made fit for training.

First a turn's text and role, and the order that a model can learn; then the cleaning steps, each of
which gives back what it was given where there is nothing to clean.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]  # "role", "content"; "weight": 0 where an answer is not learned

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can hold one; UTF-8 cannot
ROLES = {
    **dict.fromkeys(("user", "usr", "human", "prompter", "customer", "question", "q"), "user"),
    **dict.fromkeys(("instruction", "用户", "问", "客户", "学生"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "answer", "a", "output"),
        "assistant",
    ),
    **dict.fromkeys(("助手", "机器人", "答", "客服", "老师"), "assistant"),
    **dict.fromkeys(("bing", "bard", "claude", "gemini"), "assistant"),
    **dict.fromkeys(("system", "developer", "系统"), "system"),
}
# What a spreadsheet or a program leaves where there was nothing to say.
PLACEHOLDERS = frozenset(
    ("nan", "NaN", "None", "NULL", "null", "N/A", "n/a", "#N/A", "<NA>", "NaT", "无")
    + ("#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!")
)
# Parts of a turn that no template of ours writes: what follows from them would be learned alone.
_UNWRITTEN = ("tool_calls", "function_call", "reasoning_content", "reasoning")


class BadRow(ValueError):
    """A row that cannot become a conversation; its text is the reason."""


def as_text(value: Any, name: str) -> str:
    """The value as trimmed text with plain line ends.

    A number, true or false is the text of it (`whole_numbers` has made 2.0 the 2 that it was).
    Raises BadRow for what is none of these.
    """
    text = _spelled(value, name).strip()
    if "\r" in text:  # Windows' line ends: a prompt typed elsewhere would have other tokens
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise BadRow(f'"{name}" holds a NUL byte')
    require_whole(text, name)
    return text


def require_whole(text: str, name: str) -> None:
    """BadRow for half a character, which UTF-8 cannot hold: a file or a hash of it would fail."""
    if not text.isascii() and _HALF_CHARACTER.search(text):
        raise BadRow(f'"{name}" holds half a character (a lone surrogate)')


def _spelled(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRow(f'"{name}" is not a finite number')
        return str(value)
    if isinstance(value, int):
        return str(value)
    raise BadRow(f'"{name}" is not text')


def turn(role: str, text: Any) -> Message:
    content = as_text(text, role)
    if not content:
        raise BadRow(f"empty {role} turn")
    return {"role": role, "content": content}


def exchange(question: Any, answer: Any) -> list[Message]:
    return [turn("user", question), turn("assistant", answer)]


def listed_turns(row: Mapping[str, Any], column: str) -> list[Message]:
    """The turns of a list column; role and text under OpenAI's or ShareGPT's names.

    The list may be JSON in a text, as a CSV holds it. A system message without words is none.
    """
    turns = _unpacked(row.get(column))
    if not isinstance(turns, list) or not all(isinstance(one, dict) for one in turns):
        raise BadRow(f'no "{column}" list')
    listed = [_listed_turn(one) for one in turns]
    return [one for one in listed if one]


def _unpacked(turns: Any) -> Any:
    if not isinstance(turns, str) or not turns.lstrip().startswith("["):
        return turns
    try:
        return json.loads(turns)
    except (ValueError, RecursionError):
        return None


def _listed_turn(listed: Mapping[str, Any]) -> Message | None:
    unwritten = next((name for name in _UNWRITTEN if listed.get(name)), None)
    if unwritten:
        raise BadRow(f'a turn has "{unwritten}", which no template writes')
    name = str(listed.get("from", listed.get("role")))
    role = ROLES.get(name.strip(" :：").lower())
    if role is None:
        raise BadRow(f"unknown role {name[:40]!r}")
    text = _joined(listed.get("value", listed.get("content", "")))
    if role == "system" and text in (None, ""):
        return None
    said = turn(role, text)
    if role == "assistant" and listed.get("weight") == 0:
        said["weight"] = 0  # OpenAI's sign of an answer that is not to be learned
    return said


def _joined(content: Any) -> Any:
    """The texts of a content that is a list of parts; BadRow for a part that is no text."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "text":
            part = part.get("text")
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRow(f"a turn has a part that is no text: {str(kind)[:40]!r}")
        texts.append(part)
    return "".join(texts)


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
