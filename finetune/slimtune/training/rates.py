"""Which learning rate is usual: by the size of the model, what of it learns, and the optimizer.

    parameters     all weights   adapter   whose
    under 20 M     1e-3          4e-3      the built-in sample (2.5 M), measured on it
    under 500 M    1e-4          1e-3      SmolLM2-135M: the adapter's measured; the formula
    under 2 B      5e-5          5e-4      the formula: 7e-5 and 7e-4 at hidden size 2048
    under 20 B     2e-5          2e-4      Stanford Alpaca; QLoRA's 7B and 13B; Unsloth's default
    larger         1e-5          1e-4      QLoRA's 33B and 65B

An adapter wants ten times the rate of all weights ("LoRA Without Regret", Thinking Machines,
2025; "LoRA Learns Less and Forgets Less", arXiv:2405.09673, has an order of magnitude, too),
whatever its rank, since LoRA divides by it. Below 2 B the table follows tinker-cookbook's fit for
Llama, 5e-5 · (2000 / hidden size)^0.78, and ten times that for adapters. QLoRA is arXiv:2305.14314;
four or eight bits in the base change nothing. LoRA+ (arXiv:2402.12354) raises the rate of B, so
that half is enough for A. An optimizer's factor on AdamW's rate is in its catalogue.
"""

from slimtune.config.catalogues import facts

_USUAL = (  # parameters below, rate of all weights, rate of an adapter
    (2e7, 1e-3, 4e-3),
    (5e8, 1e-4, 1e-3),
    (2e9, 5e-5, 5e-4),
    (2e10, 2e-5, 2e-4),
    (float("inf"), 1e-5, 1e-4),
)
_OPTIMIZERS: dict[str, float] = facts("optimizers", "rate")
# All weights of a student that learns through the types of its file: it begins as a balance of
# errors that larger steps throw over. The sample as Q4_K_S lost 0.0025 nats a token before, 0.0019
# after 60 steps at 1e-5, 0.0022 after 30 at 3e-5, and 0.0044 after 30 at 1e-4.
_THROUGH_A_FILE = 1e-5
_FAR = 5  # times more or less than usual: the gap between an adapter's rates of two rows at least


def usual_rate(
    parameters: int,
    *,
    adapter: bool,
    optimizer: str = "adamw_torch",
    loraplus_ratio: float = 1.0,
    through_a_file: bool = False,
) -> float:
    """The learning rate to begin with for a model of so many parameters."""
    if through_a_file:
        return float(f"{_THROUGH_A_FILE * _OPTIMIZERS[optimizer]:.2g}")
    whole, adapted = next(rates for below, *rates in _USUAL if parameters < below)
    rate = adapted if adapter else whole
    if adapter and loraplus_ratio > 1:
        rate /= 2
    return float(f"{rate * _OPTIMIZERS[optimizer]:.2g}")


def is_far(rate: float, usual: float) -> bool:
    """Whether a rate is so far from the usual one that it wants a word."""
    return not usual / _FAR <= rate <= usual * _FAR
