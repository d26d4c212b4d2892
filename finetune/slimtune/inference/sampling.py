"""The next token from a model's logits, chosen as llama.cpp's samplers choose it, in numpy.

Both engines choose here, so that a folder and its GGUF answer alike, and a llama-server that is
given the same seed answers as both do. The order is that of
llama.cpp's common/sampling.cpp: penalties, top-k, top-p, min-p, temperature, draw.
"""

from collections.abc import Iterable

import numpy as np

from slimtune.inference.decoding import Decoding


class Chooser:
    """Chooses the tokens of one answer; the penalty counts the ids of `prompt` from the start.

    Draws are those of C++'s mt19937 from `decoding.seed`, one a token.
    """

    def __init__(self, decoding: Decoding, prompt: Iterable[int]) -> None:
        self.decoding = decoding
        self.seen = set(prompt) if decoding.repeat_penalty != 1 else None
        self.random = None if decoding.greedy else np.random.RandomState(decoding.seed)

    def choose(self, logits: np.ndarray) -> int:
        """The next token given its logits (vocabulary,), which stay as they are."""
        if self.decoding.plain:
            return int(logits.argmax())
        logits = logits.astype(np.float32)  # a copy
        if self.seen is not None:
            _penalise(logits, np.fromiter(self.seen, np.int64), self.decoding.repeat_penalty)
        if self.random is None:
            token = int(logits.argmax())
        else:
            token = _draw(logits, _kept(logits, self.decoding), self.decoding, self._uniform())
        if self.seen is not None:
            self.seen.add(token)
        return token

    def _uniform(self) -> float:
        """In [0, 1) with 53 bits and more, from two numbers of 32, the low one first."""
        low, high = map(int, self.random.randint(0, 2**32, size=2, dtype=np.uint32))
        return (low + high * 2**32) / 2**64


def _penalise(logits: np.ndarray, tokens: np.ndarray, penalty: float) -> None:
    """l / penalty where l > 0, else l · penalty, of the given tokens (arXiv:1909.05858)."""
    found = logits[tokens]
    penalty = np.float32(penalty)
    logits[tokens] = np.where(found <= 0, found * penalty, found / penalty)


def _kept(logits: np.ndarray, decoding: Decoding) -> np.ndarray:
    """The ids that may be drawn: the likeliest first where top-k or top-p sorted them."""
    tokens = np.arange(len(logits))
    if 0 < decoding.top_k < len(logits):
        few = np.argpartition(-logits, decoding.top_k - 1)[: decoding.top_k]
        tokens = few[np.argsort(-logits[few], kind="stable")]
    if decoding.top_p < 1:
        tokens = _nucleus(logits, tokens, decoding.top_p)
    if decoding.min_p > 0:
        least = logits[tokens].max() + np.log(np.float32(decoding.min_p))
        tokens = tokens[logits[tokens] >= least]
    return tokens


def _nucleus(logits: np.ndarray, tokens: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest likeliest of `tokens` that together have the probability `top_p`."""
    probabilities = np.exp(logits[tokens] - logits[tokens].max())
    probabilities /= probabilities.sum(dtype=np.float32)
    # What is less likely than this has less than 1 - top_p together, so it need not be sorted: of
    # 128,000 tokens a few hundred are left. (0.99: rounding of the sum.)
    likely = probabilities >= 0.99 * (1 - top_p) / len(tokens)
    tokens, probabilities = tokens[likely], probabilities[likely]
    order = np.argsort(-probabilities, kind="stable")
    enough = int(np.searchsorted(probabilities[order].cumsum(dtype=np.float32), top_p)) + 1
    return tokens[order[:enough]]


def _draw(logits: np.ndarray, tokens: np.ndarray, decoding: Decoding, uniform: float) -> int:
    """One of `tokens` by softmax(logits / temperature), as `uniform` in [0, 1) falls."""
    below = (logits[tokens] - logits[tokens].max()).astype(np.float64)
    sums = np.exp(below / decoding.temperature).cumsum()
    place = int(np.searchsorted(sums, sums[-1] * uniform))
    return int(tokens[min(place, len(tokens) - 1)])
