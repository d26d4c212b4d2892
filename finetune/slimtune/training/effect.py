"""Whether a run changed its model, and for the better; else the cause, and what would help."""

import math
from pathlib import Path

import torch

from slimtune.errors import QualityError
from slimtune.models.weights import Checkpoint
from slimtune.settings.flags import named
from slimtune.training.curve import Curve
from slimtune.training.rates import is_far

_FEW = 20  # steps: with fewer, a usual rate may be too little

# A loss in nats a token. Where weights have grown beyond all measure, every token is as likely as
# the next: ln V to the third digit. Above the guess with a rate far above the usual one, or that
# much above the start, a run has blown up; less may be a few hard rows.
_ALIKE, _FAR_UP = 1e-3, 1.0


class BlownUp(QualityError):
    """What was trained is worse than what it was made from: there is nothing to keep."""


class NoEffect(QualityError):
    """What was trained changes nothing: the run is at its end, without anything to keep."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"the trained {what} changes nothing", why, "train longer or faster")


def explained(
    idle: NoEffect, section: str, steps: int, rate: float, usual: float, what: str
) -> QualityError:
    """The same error with its cause, the rate or the number of steps, and the script's own flags.

    `section` is that of the run's settings; `usual` is the rate that is usual for `what`.
    """
    faster = f"raise {named(f'{section}.learning_rate')} (auto is {usual:g})"
    longer = f"train longer: raise {named(f'{section}.epochs')}, or give more rows"
    if rate < usual and is_far(rate, usual):
        cure = faster
    else:
        cure = longer if steps < _FEW else f"{faster}, or {longer}"
    why = f"{steps} steps at a learning rate of {rate:g}, where {usual:g} is usual for {what}"
    return QualityError(idle.what, f"{idle.why}; {why}", cure)


def require_learned(curve: Curve, vocabulary: int, section: str, rate: float, usual: float) -> None:
    """Raises BlownUp for a model that got worse than before its training, or no better than
    guessing among its `vocabulary` by a rate far above the `usual` one.

    With validation the loss is the best of it, also where that has too few rows to choose by: the
    first training rows may be others than the last (57 rows in batches of 4: 7.1 -> 8.2 of a run
    that learned). Without, it is that of the last logged steps. A student that came closer to its
    teacher may be a little worse at the labels: 0.111 -> 0.113 nats, after blocks.
    """
    compared = curve.before_and_after()
    if compared is None:
        return
    before, after = compared
    judged = bool(curve.validation)
    guess, fast = math.log(vocabulary), rate > usual and is_far(rate, usual)
    guesses = abs(after - guess) < _ALIKE or (fast and after > guess)
    worse = after > before + (_FAR_UP if curve.gained or not judged else 0)
    if not (worse or guesses):
        return
    what = "validation loss" if judged else "training loss"
    why = f"the learning rate was {rate:g}, where {usual:g} is usual"
    if guesses:
        why += f"; to guess among {vocabulary:,} tokens costs {guess:.3f}"
    slower = f"lower {named(f'{section}.learning_rate')} (auto is {usual:g})"
    said = f"{section} blew up: {what} {before:.3f} -> {after:.3f}"
    raise BlownUp(said, why, slower if fast else f"{slower}, or check the rows")


def changed_share(before: Path, after: Path) -> float:
    """The share of all weights that differ between two folders of one shape, tensor by tensor."""
    old, new = Checkpoint(before), Checkpoint(after)
    changed = total = 0
    for name in old.tensors.keys() & new.tensors.keys():
        for (_, ours), (_, theirs) in zip(new.rows(name), old.rows(name), strict=False):
            changed += int(torch.count_nonzero(ours.float() != theirs.float()))
            total += ours.numel()
    return changed / max(1, total)


def require_change(before: Path, after: Path, what: str) -> float:
    """The share of weights that differ; raises NoEffect where none does."""
    share = changed_share(before, after)
    if not share:
        kind = str(Checkpoint(after).dtype(next(iter(Checkpoint(after).tensors)))).split(".")[-1]
        raise NoEffect(what, f"stored as {kind}, each weight is what it was before")
    return share
