"""Weights of the right shapes that know nothing: a model that is worse than guessing.

Who guesses each token of a vocabulary V alike loses ln V nats a token. Rows alone prove nothing: an
honest model that has never met their language or template may lose more on them (the sample's base
loses 8.7 nats where guessing loses 6.9). So it is asked for plain texts as well, of several
languages: what is worse than guessing on every one of them has learned no language at all.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimtune.artifacts import lineage
from slimtune.console import near
from slimtune.errors import InputError
from slimtune.prompts import IGNORED

_log = logging.getLogger(__name__)

# Each is one language; the last is that of the built-in sample, which knows no other.
TEXTS = (
    "Once upon a time there was a little girl who lived with her mother in a house by the sea.",
    "今天天气很好，我们一起去公园散步。中国的首都是北京。",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 1))\n",
    "El perro corre por la calle y los niños juegan en el parque con su madre.",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24",
    "Convert 5 kilometres to metres and get 5000. Multiply five and six and get thirty.",
)
# Nats over guessing. Random weights before any training lose 0.0 to 0.8 more than guessing
# (half the variance of their logits, 0.02² a hidden channel): nothing is damaged there.
_WORSE, _DAMAGED = 0.1, 3.5


def examples(tokenizer: Any, longest: int = 128) -> list[dict[str, list[int]]]:
    """The plain texts as `token_losses` reads them, at most `longest` tokens of each."""
    texts = [tokenizer(text).input_ids[:longest] for text in TEXTS]
    return [{"input_ids": ids, "labels": [IGNORED, *ids[1:]]} for ids in texts if len(ids) > 1]


def is_worse(loss: float, vocabulary: int) -> bool:
    """Whether a loss in nats a token is worse than guessing; what is no number others look for."""
    return loss > math.log(vocabulary) + _WORSE


def judge(
    model: str | Path, rows: float, plain: Callable[[], float], vocabulary: int, *, explained: bool
) -> None:
    """A caution for a model that is worse than guessing, on its rows and on every plain text.

    `rows` is its loss on them; `plain`, asked only where that is bad, the least of those on TEXTS.
    Raises InputError where it is far worse and that is not `explained`: a model that was pruned may
    be so until it has been trained.
    """
    if not is_worse(rows, vocabulary):
        return
    best = min(rows, plain())
    if not is_worse(best, vocabulary):
        return
    said = f"{near(model)}: worse than guessing, {best:.1f} nats a token at its best"
    why = f"to guess among {vocabulary:,} tokens costs {math.log(vocabulary):.1f}"
    if explained or best <= math.log(vocabulary) + _DAMAGED:
        _log.warning("caution: %s; %s: it has learned no language, or forgotten it", said, why)
        return
    raise InputError(
        said,
        f"{why}, so its weights are damaged, or belong to another config.json or tokenizer",
        "copy the model folder again, and compare its files' sums with the original's",
    )


def was_pruned(model: str | Path) -> bool:
    """Whether a model was cut, itself or one that it was made from, by the records beside it."""
    return "model_pruning" in lineage(Path(model))
