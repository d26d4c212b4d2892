"""A GGUF's own vocabulary as the tokenizer of its prompts: what llama.cpp does is what counts.

For files that others made. One of ours is read with the tokenizer of the folder it was made from:
its ids are the same, which convert_to_gguf proved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gguf import TokenType

from slimtune.errors import InputError
from slimtune.models.gguf_adapter import require_model
from slimtune.models.gguf_header import GgufHeader, damaged

if TYPE_CHECKING:
    from slimtune.inference.llama_cpp import LlamaCpp

_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)
# Bytes of a token and of all together: many times what real ones have. Merges are found by trying
# every cut of a token, so that one of a megabyte would keep a machine busy for hours.
_LONGEST, _LONGEST_IN_ALL = 1024, 16 << 20
# What llama.cpp takes where a file names none, by the model of its vocabulary.
_USUAL = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}


@dataclass(frozen=True)
class GgufTokens:
    """The tokens of a file and which of them are special, as its metadata say."""

    tokens: list[bytes]
    types: list[int]
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None

    def name(self, index: int | None) -> str | None:
        return None if index is None else self.tokens[index].decode("utf-8", "replace")

    @cached_property
    def added(self) -> dict[int, str]:
        """Control tokens and those that a user added: id -> text."""
        return {i: self.name(i) for i, kind in enumerate(self.types) if kind in _ADDED}


def tokens_of(header: GgufHeader) -> GgufTokens:
    """Raises InputError for a file without a vocabulary, or with one that does not add up."""
    require_model(header)
    tokens = header.get("tokenizer.ggml.tokens", list)
    if not tokens:
        raise InputError(
            f"{header.file}: no vocabulary",
            "tokenizer.ggml.tokens is missing, so no text can become ids",
            "take a GGUF that holds a whole language model",
        )
    if max(map(len, tokens)) > _LONGEST or sum(map(len, tokens)) > _LONGEST_IN_ALL:
        raise damaged(header.file, f"its tokens are longer than {_LONGEST} bytes, or too many")
    types = [int(kind) for kind in header.metadata.get("tokenizer.ggml.token_type", ())]
    if types and len(types) != len(tokens):
        raise damaged(header.file, f"{len(tokens)} tokens have {len(types)} types")
    usual = _USUAL.get(header.get("tokenizer.ggml.model", str, ""), {})
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        index = header.get(f"tokenizer.ggml.{name}_token_id", int, usual.get(name))
        if index is not None and not 0 <= index < len(tokens):
            raise damaged(header.file, f"its {name} token is {index} of {len(tokens)}")
        special[name] = index
    return GgufTokens(tokens, types or [TokenType.NORMAL] * len(tokens), **special)


def put_first(model: "LlamaCpp", tokens: GgufTokens) -> int | None:
    """The token that llama.cpp puts before every text; None where it puts none.

    It may be one that the file does not name: with Llama-3's rule it puts token 11 then.
    """
    ids = model.tokenize("")
    only_eos = ids == [tokens.eos] != [tokens.bos]
    return ids[0] if ids and not only_eos else None


@dataclass(frozen=True)
class Ids:
    """What calling a tokenizer returns, as far as prompts are made of it."""

    input_ids: list


class GgufTokenizer:
    """The face of a transformers tokenizer, as far as `prompts` asks for one, over llama.cpp."""

    def __init__(self, model: "LlamaCpp", header: GgufHeader) -> None:
        self.model = model
        self.known = known = tokens_of(header)
        first = put_first(model, known)
        self.bos_token_id = known.bos if first is None else first
        self.eos_token_id = known.eos
        self.bos_token, self.eos_token = map(known.name, (self.bos_token_id, known.eos))
        self.added_tokens_decoder = known.added
        self.chat_template = header.template
        self.name_or_path = str(header.file)
        self.size = len(known.tokens)

    def __len__(self) -> int:
        return self.size

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        return [self.known.name(index) for index in ids]

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, verbose: bool = True
    ) -> Ids:
        """Ids of a text, or of each text; special tokens in it are parsed."""
        if isinstance(text, str):
            return Ids(self.model.tokenize(text, add_special=add_special_tokens))
        return Ids([self.model.tokenize(one, add_special=add_special_tokens) for one in text])
