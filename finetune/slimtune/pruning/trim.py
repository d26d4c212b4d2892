"""Cutting the vocabulary to the tokens in use: rows of embedding and output layer, nothing else.

Closed form, a few rows at a time. What stays computes what it computed, so the cut is proven to the
last piece: every row is cut into the same tokens, any text comes back, and the logits of the tokens
that stay are the model's. The loss can only fall, by what the tokens that went were given:
loss after - loss before = mean over tokens of log(sum of the kept tokens' probabilities).
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from slimtune.config import Config
from slimtune.errors import QualityError
from slimtune.models import tokenizers
from slimtune.models.origin import fingerprint
from slimtune.models.vocabulary_map import write_map
from slimtune.models.weights import Checkpoint
from slimtune.pruning.anatomy import Keep, prunable_shape
from slimtune.pruning.calibration import Calibration
from slimtune.pruning.kept_tokens import Texts
from slimtune.pruning.trimmed_tokenizer import renumber
from slimtune.pruning.writer import few_ids, loaded_logits, require_equal, write_pruned

_log = logging.getLogger(__name__)

_ROWS, _LENGTH = 2, 64  # whose logits are compared: 80 MB at 151,936 tokens
_LAST = 0x110000  # one beyond the last code point
_SURROGATES = range(0xD800, 0xE000)  # no text holds one of them


@dataclass(frozen=True)
class Trimmed:
    """What was cut and proven: tokens, and the largest difference of kept tokens' logits."""

    before: int
    after: int
    rows: int
    difference: float


def trim_vocabulary(source: Path, output: Path, kept: list[int], config: Config) -> Trimmed:
    """Writes the model with the tokens `kept` alone; QualityError where it is not proven equal."""
    checkpoint = Checkpoint(source)
    shape = prunable_shape(checkpoint)
    keep = Keep(list(range(shape.layers)), vocabulary=torch.tensor(kept))
    write_pruned(checkpoint, replace(shape, vocabulary=len(kept)), keep, output)
    renumber(output, kept)
    write_map(output, kept, shape.vocabulary, fingerprint(checkpoint))
    before, after = tokenizers.load_tokenizer(source), tokenizers.load_tokenizer(output)
    texts = Texts.of(config, before)
    rows = require_same_pieces(texts, before, after, kept)
    require_same_texts(before, after)
    ids = torch.tensor(rows) if rows else few_ids(len(kept), seed=0)
    meant = loaded_logits(source, torch.tensor(kept)[ids])[..., kept]
    difference = require_equal(output, ids, meant)
    _log.info("vocabulary: %d of %d tokens are left", len(kept), shape.vocabulary)
    return Trimmed(shape.vocabulary, len(kept), len(texts.rows), difference)


def require_same_pieces(
    texts: Texts, before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, kept: list[int]
) -> list[list[int]]:
    """QualityError unless every text is cut into the same tokens; the first long rows' new ids."""
    found: list[list[int]] = []
    pairs = zip(texts.encoded(before), texts.encoded(after), strict=True)
    for place, (old, new) in enumerate(pairs):
        if [kept[id] for id in new] != old:
            what = "training row" if place < len(texts.rows) else "text"
            raise _unproven(f"{what} {place + 1} is cut into other tokens than before")
        if len(found) < _ROWS and len(new) >= _LENGTH:
            found.append(new[:_LENGTH])
    return found


def require_same_texts(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast) -> None:
    """QualityError unless any text comes back from its ids as it did before."""
    for text in _any_texts():
        ids = after(text, add_special_tokens=False).input_ids
        meant = before.decode(before(text, add_special_tokens=False).input_ids)
        if after.decode(ids) != meant:
            raise _unproven(f"{text[:20]!r} does not come back from its tokens")


def _any_texts() -> list[str]:
    """4096 code points from all of Unicode in texts of 16, and every one up to U+02FF."""
    step = _LAST // 4096
    points = [point for point in range(1, _LAST, step) if point not in _SURROGATES]
    points += range(1, 0x300)
    letters = "".join(map(chr, points))
    return [letters[start : start + 16] for start in range(0, len(letters), 16)]


def _unproven(found: str) -> QualityError:
    return QualityError(
        "the trimmed vocabulary is not proven",
        found,
        "this is a bug of SlimTune: please report it with the model's tokenizer files",
    )


def in_old_ids(calibration: Calibration | None, kept: list[int] | None) -> Calibration | None:
    """The rows of a calibration of the trimmed model as the model before it reads them."""
    if calibration is None or kept is None:
        return calibration
    old = torch.tensor(kept)

    def back(batches: list) -> list:
        return [replace(batch, ids=old[batch.ids]) for batch in batches]

    return replace(calibration, batches=back(calibration.batches), check=back(calibration.check))
