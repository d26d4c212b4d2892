"""How much a unit matters. A criterion is a function here and a catalogue entry.

A unit is an FFN neuron (row j of gate_proj and up_proj, column j of down_proj), a KV group (the
rows of its q, k and v heads, its columns of o_proj) or a hidden channel. All criteria see the same
`Evidence`; what they do not need is None.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from slimtune.config.catalogues import bind, facts


@dataclass(frozen=True)
class Evidence:
    """What is known about the units of one layer; every tensor has shape (units,) at its end.

    incoming: (matrices, units), L2 norms of the weights that make a unit, matrix by matrix.
    outgoing: L2 norm of the weights that read it. flow: sum over the calibration tokens and over
    the unit's channels c of x_c^2 |W_.c|^2, what the next matrix gets from it. slope: sum over the
    unit's weights of w * dL/dw.
    """

    incoming: torch.Tensor
    outgoing: torch.Tensor
    flow: torch.Tensor | None = None
    slope: torch.Tensor | None = None


Criterion = Callable[[Evidence, torch.Generator], torch.Tensor]


def magnitude(evidence: Evidence, generator: torch.Generator) -> torch.Tensor:
    """score = prod over matrices of |incoming| * |outgoing|.

    A unit's output is a product of them, so one small factor makes it small: norms multiply.
    """
    return evidence.incoming.prod(dim=0) * evidence.outgoing


def activation(evidence: Evidence, generator: torch.Generator) -> torch.Tensor:
    """score = sum x_c^2 |W_.c|^2: the energy that the unit sends on for calibration inputs.

    Wanda's |W| * |x| (arXiv:2306.11695), summed over whole units.
    """
    return evidence.flow


def taylor(evidence: Evidence, generator: torch.Generator) -> torch.Tensor:
    """score = |sum w * dL/dw|: the first-order change of the loss without the unit.

    Molchanov et al., arXiv:1906.10771; LLM-Pruner, arXiv:2305.11627.
    """
    return evidence.slope.abs()


def random(evidence: Evidence, generator: torch.Generator) -> torch.Tensor:
    """score ~ U(0, 1): the baseline that a criterion has to beat."""
    return torch.rand(evidence.outgoing.shape, generator=generator)


CRITERIA: dict[str, Criterion] = bind("criteria", globals())
CALIBRATED: dict[str, bool] = facts("criteria", "calibrated")


def strongest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` highest scores, ascending: the order of what stays does not change."""
    return scores.topk(count).indices.sort().values
