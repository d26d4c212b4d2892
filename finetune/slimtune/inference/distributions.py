"""How far a model's predictions lie from its original's: all of the vocabulary, token by token.

    plan = Distributions(rows, keep=folder)          # the original writes what it expects
    plan = Distributions(rows, original=folder)      # another reads it beside its own
    one = plan.row(7, places).open()
    one.add(log_probabilities)                       # of each supervised token, in order
    one.close()                                      # one.divergences, one.agreements

One model is in memory at a time, so the original's log-probabilities wait on disk: a file a row,
two bytes for each token of the vocabulary. Hidden states with the output layer would take
less room, but a GGUF shows none, and adapters and scalings of logits would have to be repeated.
Nothing here imports torch: llama.cpp's child process uses it too.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtune.machine.moving import move

MOST_BYTES = 1 << 30  # of one original: 10,485 tokens of a vocabulary of 51,200, 3,500 of 152,000
_SEED = 20240229
_KEPT = np.dtype("<u2")
# Equal steps of 32 / 65535 nats leave 3e-8 nats of rounding in a divergence; float16, whose steps
# are 0.008 at the unlikely tokens, leaves 1e-6. Less than e^-32 = 1e-14 is kept as that.
_STEP = 32 / 65535
_LEAST = -1e4  # nats: infinities have no difference


def rounded(log_probabilities: np.ndarray) -> np.ndarray:
    """ln p as it is kept: how many steps it lies under 0."""
    return np.rint(np.clip(log_probabilities, -32, 0) / -_STEP).astype(_KEPT)


def kl_divergence(original: np.ndarray, log_probabilities: np.ndarray) -> float:
    """KL(P‖Q) = Σ p (ln p − ln q), in nats, over the whole vocabulary.

    `original` is ln p as it was kept. Rounded, it does not quite sum to 1, so it is normalised
    again: Σ w (ln w − ln q) / Σ w − ln Σ w. Kullback & Leibler 1951; llama-perplexity's
    --kl-divergence, which keeps 16 bits as well.
    """
    logs = original * -_STEP
    weights = np.exp(logs)
    total = weights.sum()
    apart = weights @ (logs - np.maximum(log_probabilities, _LEAST)) / total - np.log(total)
    # Rounding leaves -1e-17 between equal distributions; damaged weights, which give NaN, keep it.
    return 0.0 if apart < 0 else float(apart)


def sample_of(tokens: Sequence[int], vocabulary: int, most: int = MOST_BYTES) -> frozenset[int]:
    """The rows to compare: all, or as many as `most` bytes hold, drawn by chance.

    `tokens` are the supervised tokens of each row. The draw is the same for every model that reads
    the rows as the same tokens.
    """
    room = most // (_KEPT.itemsize * vocabulary)
    order = [row for row, count in enumerate(tokens) if 0 < count <= room]
    random.Random(_SEED).shuffle(order)
    chosen = set()
    for row in order:
        if tokens[row] > room:
            break  # to go on would prefer short rows
        chosen.add(row)
        room -= tokens[row]
    return frozenset(chosen)


@dataclass(frozen=True)
class Distributions:
    """What becomes of the predictions on `rows`: kept in a folder, or compared with an original's
    in another, or both."""

    rows: frozenset[int]
    keep: Path | None = None
    original: Path | None = None

    def row(self, row: int, places: Sequence[int]) -> "RowPlan | None":
        """That of one row; `places` are its supervised tokens among those that are scored."""
        if row not in self.rows:
            return None
        files = [folder and _file(folder, row) for folder in (self.keep, self.original)]
        return RowPlan(*files, tuple(places))

    def missing(self) -> frozenset[int]:
        """The rows that are to be kept and are not there yet."""
        if self.keep is None:
            return frozenset()
        return frozenset(row for row in self.rows if not _file(self.keep, row).is_file())


def kept_rows(folder: Path) -> list[int]:
    """The rows that an original has kept in `folder`."""
    return sorted(int(file.stem) for file in folder.glob(f"*{_SUFFIX}"))


_SUFFIX = ".u16"


def _file(folder: Path, row: int) -> Path:
    return folder / f"{row}{_SUFFIX}"


@dataclass(frozen=True)
class RowPlan:
    """The files of one row, and which of the tokens that are scored are its supervised ones."""

    keep: Path | None
    original: Path | None
    places: tuple[int, ...]

    def open(self) -> "RowDistributions":
        return RowDistributions(self)


class RowDistributions:
    """One row being read: its log-probabilities go by, token after token, and none stays."""

    def __init__(self, plan: RowPlan) -> None:
        self.plan = plan
        self.divergences: list[float] = []
        self.agreements: list[bool] = []
        self._partial = plan.keep and plan.keep.with_name(f"{plan.keep.name}.partial")
        self._kept = None
        if self._partial:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._kept = self._partial.open("wb")
        self._original = _read(plan.original, len(plan.places)) if plan.original else None
        self._next = 0

    def add(self, log_probabilities: np.ndarray) -> None:
        """ln q of every token of the vocabulary, at the row's next supervised token."""
        # Of one that expects nothing at all the file stays too short, and the row is not compared.
        if self._kept and not np.isnan(log_probabilities[0]):
            self._kept.write(rounded(log_probabilities).tobytes())
        original = self._original
        if original is not None and original.shape[1] == len(log_probabilities):
            expected = original[self._next]
            self.divergences.append(kl_divergence(expected, log_probabilities))
            # Two that lie within one step are both first.
            first = int(np.argmax(log_probabilities))
            self.agreements.append(bool(expected[first] == expected.min()))
        self._next += 1

    def close(self) -> None:
        """What was kept gets its name: a file that is there is whole."""
        if self._kept:
            self._kept.close()
            move(self._partial, self.plan.keep)


def _read(file: Path, tokens: int) -> np.ndarray | None:
    """(tokens, vocabulary) log-probabilities; None where the original has kept none."""
    if not tokens or not file.is_file():
        return None
    vocabulary, rest = divmod(file.stat().st_size, tokens * _KEPT.itemsize)
    if rest or not vocabulary:
        return None
    return np.memmap(file, _KEPT, "r", shape=(tokens, vocabulary))
