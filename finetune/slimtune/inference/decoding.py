"""How an answer is chosen from a model's logits: the settings group `generation`, as plain values.

Every engine follows one `Decoding`, whoever computes, so that models differ and their decoding does
not. Nothing here imports torch: llama.cpp's child process and servers follow it too.
"""

from dataclasses import dataclass, replace
from typing import Self

from slimtune.config import GenerationSection

_CHAT_TOKENS = 512
_FAR_APART = 2654435761  # 2^32 over the golden ratio
_SEEDS = 2**32 - 1  # that number itself has llama.cpp choose a seed


@dataclass(frozen=True)
class Decoding:
    """At most `max_new_tokens` an answer, each the likeliest one (greedy) unless told otherwise.

    The meaning of the others is llama.cpp's, in its order: `repeat_penalty` divides the positive
    and multiplies the negative logits of tokens that stand in prompt or answer already, then
    `top_k`, `top_p` and `min_p` leave out the unlikely ones, then softmax(logits / temperature) is
    drawn from, by the same generator from the same `seed`.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, generation: GenerationSection) -> Self:
        """What the settings ask for; `max_new_tokens: auto` is a chat's, which no reference bounds.

        A comparison settles it first (`evaluation.answer_room`).
        """
        auto = generation.max_new_tokens == "auto"
        return cls(
            max_new_tokens=_CHAT_TOKENS if auto else generation.max_new_tokens,
            temperature=generation.temperature,
            top_k=generation.top_k,
            top_p=generation.top_p,
            min_p=generation.min_p,
            repeat_penalty=generation.repeat_penalty,
            seed=generation.seed or 0,
        )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def plain(self) -> bool:
        """Whether it is the likeliest token of the raw logits, and nothing else."""
        return self.greedy and self.repeat_penalty == 1

    def for_row(self, row: int) -> Self:
        """The same with a seed of the row's own: it draws alike, whatever is asked beside it.

        One seed for all would make all rows unlikely alike: with each of some seeds, 201 to 301 of
        340 answers of the sample were right, and 287 to 296 where each row drew for itself.
        """
        return replace(self, seed=(self.seed + row * _FAR_APART) % _SEEDS)

    def within(self, tokens: int) -> Self:
        """The same with answers of at most `tokens`."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, tokens))
