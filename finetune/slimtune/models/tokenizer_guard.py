"""Special tokens that a fine-tune can live with: the EOS that is trained, padding that is not EOS.

A collator that masks padding, with padding = EOS, teaches the model never to stop; so does an EOS
that the model's own chat template does not write.
"""

import logging

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from slimtune.console import InputError

_ANSWER = "the answer"  # a text to find again in what a chat template renders
_PAD_CANDIDATES = [
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<|fim_pad|>",
    "<|endoftext|>",
]

logger = logging.getLogger(__name__)


def guard(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One chat template, the EOS that it writes, and a pad token that is not EOS."""
    named = tokenizer.chat_template
    if isinstance(named, dict):  # several, by their use
        tokenizer.chat_template = named.get("default", next(iter(named.values()), None))
    end = _end_of_answer(tokenizer)
    if end is not None:
        logger.info(
            "EOS: %s, which ends an answer in the chat template (was %s)", end, tokenizer.eos_token
        )
        tokenizer.eos_token = end
    return _guard_padding(tokenizer)


def _end_of_answer(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The special token after an answer in the model's own template where that is not EOS.

    Qwen's base models name <|endoftext|> as EOS and end turns with <|im_end|>: what is trained
    would not be what stops the model.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return None  # whoever renders with it is told
    _, found, after = text.rpartition(_ANSWER)
    if not found:
        return None
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    written = [token for token in special if token in after]
    if tokenizer.eos_token in written or not written:
        return None
    return min(written, key=after.index)


def _guard_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Keep a pad token that is not EOS, else take <unk> or a spare special one; add nothing."""
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    vocabulary = tokenizer.get_vocab()
    if pad is not None and pad != eos and pad in vocabulary:
        return tokenizer
    spare = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [tokenizer.unk_token, *_PAD_CANDIDATES, *spare, tokenizer.bos_token]
    usable = [name for name in candidates if name in vocabulary and name not in (eos, None)]
    if not usable:
        raise InputError(
            f"{tokenizer.name_or_path}: no token can serve as padding",
            "EOS is the only special token, and padding with EOS teaches a model never to stop",
            'name a "pad_token" other than EOS in tokenizer_config.json',
        )
    tokenizer.pad_token = usable[0]
    logger.info("pad token: %s (was %s)", usable[0], pad)
    return tokenizer
