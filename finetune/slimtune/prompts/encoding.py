"""Conversations as token ids and labels: the ids that llama.cpp and Ollama make of the same text.

The decision about spaces. SentencePiece puts a dummy space before a text, and llama.cpp (like the
fast tokenizer of `models.tokenizers`) before every text that follows a special token. So a prompt
is tokenised as one text, `<s>` and `</s>` parsed as tokens, BOS exactly once at its start. An
answer is what the prompt's ids continue with: no dummy space of its own, because the model, too,
speaks right after the prompt's last id. Tokenising prompt + answer as one text gives these very
ids as long as no token crosses the seam, which holds for the shipped templates: in llama2 the
answer starts with a space and SentencePiece never merges across one; in alpaca and chatml it
follows a newline, and answers are trimmed.

Conversations made to fit a number of tokens, as messages: what is left is a whole conversation.

Cutting ids instead would cut through the template: `[INST] <<SYS>>` would lose its start, and the
model would learn a prompt that it never meets when it serves. No answer is ever cut.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from slimtune.errors import SettingsError
from slimtune.prompts.rendering import ChatMessage, pieces

IGNORED = -100  # the label that torch's cross entropy leaves out

Tokenizer = Callable[..., Any]  # a transformers tokenizer; this room must not import it


class Encoded(TypedDict):
    input_ids: list[int]
    labels: list[int]


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    template: str,
    max_length: int | None = None,
) -> Encoded | None:
    """Ids of the whole conversation, and labels: the id inside an answer or its EOS, else -100.

    Beyond `max_length` ids the conversation is shortened by `shortening.shorten`: its last answer
    is never cut. None if it cannot be: the caller drops and counts it.
    """
    encoded = encode_whole(tokenizer, messages, template)
    if max_length is None or len(encoded["input_ids"]) <= max_length:
        return encoded

    def size(shorter: Sequence[ChatMessage]) -> int:
        return len(encode_whole(tokenizer, shorter, template)["input_ids"])

    shorter = shorten(messages, size, max_length)
    return None if shorter is None else encode_whole(tokenizer, shorter, template)


def encode_whole(tokenizer: Tokenizer, messages: Sequence[ChatMessage], template: str) -> Encoded:
    """The same without a limit."""
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    parts = pieces(messages, template, **tokens)
    if parts and not parts[-1][0].strip():
        del parts[-1]  # the newline that a template puts after the last EOS
    ids: list[int] = []
    labels: list[int] = []
    fresh_ids = _ids(tokenizer, [text for text, _ in parts])
    weights = [one.get("weight", 1) for one in messages if one["role"] == "assistant"]
    answers = iter(weights)
    for (_, supervised), fresh in zip(parts, fresh_ids, strict=True):
        if supervised:
            _require_end(tokenizer, fresh)
        learned = supervised and next(answers) != 0
        ids += fresh
        labels += fresh if learned else [IGNORED] * len(fresh)
    return Encoded(input_ids=ids, labels=labels)


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    template: str,
    max_length: int | None = None,
) -> list[int]:
    """Ids up to where the assistant must speak: the prefix that `encode` has before that answer.

    A last assistant message, the reference answer of a row, is left out. Beyond `max_length` ids
    the conversation is shortened as for training; where the template alone is longer, BOS and the
    last ids are left.
    """
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    answered = [*asked, ChatMessage(role="assistant", content=".")]
    prompt = _prompt(tokenizer, answered, template)
    if max_length is None or len(prompt) <= max_length:
        return prompt

    def size(shorter: Sequence[ChatMessage]) -> int:
        return len(_prompt(tokenizer, shorter, template))

    shorter = shorten(answered, size, max_length)
    if shorter is not None:
        return _prompt(tokenizer, shorter, template)
    bos = prompt[: int(prompt[0] == tokenizer.bos_token_id)]
    return bos + prompt[len(prompt) - max_length + len(bos) :]


def _prompt(tokenizer: Tokenizer, answered: Sequence[ChatMessage], template: str) -> list[int]:
    """Ids before the last answer of `answered`."""
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    parts = pieces(answered, template, **tokens)
    last = max(index for index, (_, supervised) in enumerate(parts) if supervised)
    return sum(_ids(tokenizer, [text for text, _ in parts[:last]]), [])


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids each text adds to those before it; alone where a token would cross the seam.

    No token crosses an EOS, so what lies before the last one is not tokenised again.
    """
    contexts = _contexts(texts, tokenizer.eos_token)
    joint = tokenizer(
        [before + text for before, text in zip(contexts, texts, strict=True)],
        add_special_tokens=False,
        verbose=False,
    ).input_ids
    so_far: list[int] = []
    fresh: list[list[int]] = []
    for before, text, ids in zip(contexts, texts, joint, strict=True):
        if before == tokenizer.eos_token:
            so_far = [tokenizer.eos_token_id]
        if ids[: len(so_far)] == so_far:
            new = ids[len(so_far) :]
        else:
            new = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        fresh.append(new)
        so_far = so_far + new
    bos = [tokenizer.bos_token_id]
    if fresh[0][:1] != bos and puts_bos(tokenizer):
        fresh[0] = bos + fresh[0]  # the template writes no BOS: llama.cpp would add it
    return fresh


def puts_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer itself puts BOS before every text: one that is named so need not be."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("").input_ids[:1] == [bos]


def _contexts(texts: list[str], eos_token: str | None) -> list[str]:
    """What to tokenise before each text: all since the last text that ended with EOS, and EOS."""
    contexts, context = [], ""
    for text in texts:
        contexts.append(context)
        ended = eos_token and text.endswith(eos_token)
        context = eos_token if ended else context + text
    return contexts


def _require_end(tokenizer: Tokenizer, answer: list[int]) -> None:
    """SettingsError unless the answer ends with EOS or another added token: else it never stops."""
    last = answer[-1] if answer else None
    if last is None or last not in (tokenizer.eos_token_id, *tokenizer.added_tokens_decoder):
        raise SettingsError(
            "prompt template: answers have no end",
            "no EOS follows an answer, so the model would never learn to stop",
            "write eos_token after each answer, or choose llama2, alpaca or chatml",
        )


TokenCount = Callable[[Sequence[ChatMessage]], int]  # messages -> tokens under the template


def shorten(
    messages: Sequence[ChatMessage], size: TokenCount, limit: int
) -> list[ChatMessage] | None:
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


def split(
    messages: Sequence[ChatMessage], size: TokenCount, limit: int
) -> list[list[ChatMessage]] | None:
    """The exchanges in as few conversations as fit, in order, each under the system message.

    An exchange that alone is too long is shortened as by `shorten`; None where even that fails.
    """
    system, turns = _opening(messages)
    parts: list[list[ChatMessage]] = [[]]
    for start in range(0, len(turns), 2):
        exchange = turns[start : start + 2]
        if parts[-1] and size([*system, *parts[-1], *exchange]) > limit:
            parts.append([])
        parts[-1] += exchange
    fitting = [shorten([*system, *part], size, limit) for part in parts]
    return None if None in fitting else fitting


def _opening(messages: Sequence[ChatMessage]) -> tuple[list[ChatMessage], list[ChatMessage]]:
    """The system message, if any, and the turns after it."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return list(messages[:first]), list(messages[first:])


def _cut_question(
    opening: list[ChatMessage], exchange: list[ChatMessage], size: TokenCount, limit: int
) -> list[ChatMessage] | None:
    """The exchange with as much of its question's end as fits, found by halving."""
    if len(exchange) < 2:
        return None
    question, answer = exchange
    text = question["content"].strip()

    def ending(characters: int) -> list[ChatMessage]:
        cut = text[len(text) - characters :].lstrip()
        return [*opening, ChatMessage(role=question["role"], content=cut), answer]

    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if size(ending(middle)) <= limit else (fits, middle)
    return ending(fits) if fits else None
