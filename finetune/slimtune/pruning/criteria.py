"""How much each FFN neuron matters. A criterion is one function here and one word in CRITERIA.

Neuron j of a gated FFN is row j of gate_proj and of up_proj, and column j of down_proj:
FFN(x) = W_down (silu(W_gate x) * W_up x).
"""

from collections.abc import Callable

import torch

Criterion = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


def magnitude(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """score_j = |gate_j| * |up_j| * |down_j|, from the L2 norms of neuron j's weights.

    `gate`, `up`, `down` hold those norms, each of shape (neurons,). A neuron's output is a product
    of the three, so one small factor makes it small: the norms multiply, they do not add.
    """
    return gate * up * down


def random(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """score_j ~ U(0, 1): the baseline that a criterion has to beat."""
    return torch.rand(len(gate), generator=generator)


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": random}
