"""Steps between a raw conversation and a trainable one; each says whether it found something."""

import re
from collections.abc import Sequence

from slimtune.data.turns import Message

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
