"""What becomes of a row that is longer than the model is trained on: one policy, told in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slimtune.config.catalogues import names
from slimtune.errors import InputError
from slimtune.prompts.encoding import Encoded, Tokenizer, encode_whole, shorten, split
from slimtune.prompts.rendering import ChatMessage, pieces

Policy = Literal[names("long_rows")]


@dataclass(frozen=True)
class Fitted:
    """A row within the limit: the conversations it became, the ids of each, and how that went.

    `how` is "whole", "shortened", "split" or "dropped"; only a dropped row has no conversation and
    a reason. `tokens` is the length it came with.
    """

    conversations: list[list[ChatMessage]]
    encoded: list[Encoded]
    tokens: int
    how: Literal["whole", "shortened", "split", "dropped"]
    reason: str = ""


def fit_row(
    messages: Sequence[ChatMessage],
    tokenizer: Tokenizer,
    template: str,
    max_length: int,
    policy: Policy,
    place: str = "a row",
) -> Fitted:
    """The conversation in at most `max_length` tokens by `policy`; no answer, no EOS is ever cut.

    truncate_prompt takes away the oldest exchanges, then the start of the last question (`shorten`,
    the function that training uses too). split_turns makes several conversations of it, each
    exchange in one of them. drop leaves it out; so do the others where an answer alone is too
    long. error raises InputError that names `place`, as does a template that refuses the row.
    """
    try:
        whole = encode_whole(tokenizer, messages, template)
    except InputError as refused:
        raise InputError(f"{place}: {refused.what}", refused.why, refused.cure) from refused
    tokens = len(whole["input_ids"])
    if tokens <= max_length:
        return Fitted([list(messages)], [whole], tokens, "whole")
    if policy == "error":
        raise InputError(
            f"{place}: {tokens} tokens, more than {max_length}",
            "long_rows is error, so no row may be shortened or left out",
            "raise --max-length, or choose --long-rows truncate_prompt, split_turns or drop",
        )
    if policy == "drop":
        return Fitted([], [], tokens, "dropped", f"{tokens} tokens, more than {max_length}")

    def size(shorter: Sequence[ChatMessage]) -> int:
        return len(encode_whole(tokenizer, shorter, template)["input_ids"])

    if policy == "split_turns":
        parts = split(messages, size, max_length)
    else:
        shorter = shorten(messages, size, max_length)
        parts = None if shorter is None else [shorter]
    if parts is None:
        reason = f"{tokens} tokens, and an answer alone leaves no room in {max_length}"
        return Fitted([], [], tokens, "dropped", reason)
    encoded = [encode_whole(tokenizer, part, template) for part in parts]
    return Fitted(parts, encoded, tokens, "split" if len(parts) > 1 else "shortened")


@dataclass(frozen=True)
class RowLimit:
    """`fit_row` for every row alike: what a preparation asks of tokenizer, template and limit."""

    tokenizer: Tokenizer
    template: str
    max_length: int
    policy: Policy

    def __call__(self, messages: Sequence[ChatMessage], place: str = "a row") -> Fitted:
        return fit_row(messages, self.tokenizer, self.template, self.max_length, self.policy, place)

    def shown(self, messages: Sequence[ChatMessage]) -> list[tuple[str, bool]]:
        """The text that the model sees, as (text, supervised)."""
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        return pieces(messages, self.template, bos_token=bos, eos_token=eos)
