"""How long an answer may grow: what `generation.max_new_tokens: auto` means for the rows asked.

Too short cuts right answers off, too long takes room from the prompts and lets a model that never
ends run on. No tokenizer is asked: the models of a comparison may have several, and all get one
limit.
"""

import logging
import re
from collections.abc import Sequence

from slimtune.config import Config
from slimtune.inference.questions import Question

_log = logging.getLogger("slimtune")

_STEP, _MOST = 32, 512
_LETTERS = re.compile(r" ?[A-Za-z]")


def with_answer_room(config: Config, questions: Sequence[Question]) -> Config:
    """The settings with a number for `max_new_tokens: auto`, which is said with its reason.

    The longest reference answer in tokens, its end token among them, up to the next multiple of 32;
    512 at most, and half of max_length, so that prompts keep the other half.
    """
    generation = config.generation
    if generation.max_new_tokens != "auto":
        return config
    longest = 1 + max(most_tokens(text) for one in questions for text in one.references)
    room = -(-longest // _STEP) * _STEP
    chosen = min(room, _MOST, max(1, config.training.max_length // 2))
    _log.info(
        "max_new_tokens auto: %d; the longest reference answer has at most %d tokens%s",
        *(chosen, longest, ", some are cut off" if chosen < longest else ""),
    )
    settled = generation.model_copy(update={"max_new_tokens": chosen})
    return config.model_copy(update={"generation": settled})


def most_tokens(text: str) -> int:
    """Tokens that a text takes at most with any usual tokenizer: one a byte, for Chinese, digits
    and signs may be split that far, and Llama-2 puts the space before a digit by itself; two
    letters a token, for words never are."""
    letters = sum(map(len, _LETTERS.findall(text)))
    return len(text.encode("utf-8", "replace")) - letters // 2
