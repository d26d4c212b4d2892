"""How far the student's next-token distribution is from the teacher's, with the gradient.

A divergence compares two distributions over buckets: the teacher's k likeliest tokens, each a
bucket of its own, and one bucket for the rest of the vocabulary. It maps log p (teacher) and
log q (student), both (positions, buckets) float32, to the value at each position and to its
gradient with respect to log q, the other buckets held fixed. A new one is one function here and
one entry of config/catalogues.yaml; `between` carries its gradient on to the student's logits.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from slimtune.config.catalogues import bind

Divergence = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_SKEW = 0.1
# exp(-30) is far below what float16 log-probabilities resolve; log(0) would make NaN of 0 · log 0.
_SMALLEST = -30.0


class TeacherTopK(NamedTuple):
    """The teacher's `k` likeliest tokens at each position, under softmax(logits / temperature).

    ids: (positions, k) int64; log_probabilities: (positions, k) float32, natural logarithms.
    """

    ids: torch.Tensor
    log_probabilities: torch.Tensor


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ q) = Σ p (log p - log q): the student must cover all that the teacher says.

    Hinton et al., arXiv:1503.02531.
    """
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(1), -p


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(q ‖ p) = Σ q (log q - log p): the student keeps to what the teacher says most.

    MiniLLM, arXiv:2306.08543, on the student's own text; here on the rows.
    """
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(1), q * (log_q - log_p + 1)


def jsd(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2: bounded by log 2, symmetric.

    Generalised knowledge distillation, arXiv:2306.13649, at β = ½.
    """
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    value = 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(1)
    return value, 0.5 * q * (log_q - log_m)


def skew_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ λ p + (1 - λ) q) with λ = 0.1: forward KL that a single miss cannot make huge.

    DistiLLM, arXiv:2402.03898.
    """
    p = log_p.exp()
    log_m = torch.logaddexp(log_p + math.log(_SKEW), log_q + math.log(1 - _SKEW))
    share = (log_q + math.log(1 - _SKEW) - log_m).exp()  # (1 - λ) q / m
    return (p * (log_p - log_m)).sum(1), -p * share


DIVERGENCES: dict[str, Divergence] = bind("divergences", globals())


def between(
    logits: torch.Tensor, teacher: TeacherTopK, divergence: Divergence, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """T² · Σ D(teacher, softmax(logits / T)) over the positions, and its gradient.

    The rest bucket keeps the k teacher probabilities as they are: dropping the rest or
    renormalising the k measured worse. With g = dD/dlog q on the buckets, the gradient is
    T · (g_j - q_j Σg) on a top-k token j and T · q_j (g_rest / q_rest - Σg) elsewhere.

    logits: (positions, vocabulary) float32, left as they are. Returns ((1,), gradient of their
    shape).
    """
    log_q_all = (logits / temperature).log_softmax(dim=1)
    log_q_top = log_q_all.gather(1, teacher.ids)
    q = log_q_all.exp_()
    q_top = q.gather(1, teacher.ids)
    # Summed without the top tokens: 1 - Σ top would be rounding noise where the rest is small.
    q_rest = q.scatter(1, teacher.ids, 0.0).sum(1, keepdim=True)
    p_rest = 1 - teacher.log_probabilities.exp().sum(1, keepdim=True)
    log_p = torch.cat([teacher.log_probabilities, _log(p_rest)], dim=1)
    value, g = divergence(log_p, torch.cat([log_q_top, _log(q_rest)], dim=1))
    total, rest = g.sum(1, keepdim=True), g[:, -1:]
    share = rest / q_rest.clamp_min(math.exp(_SMALLEST))
    gradient = q.mul_(share - total).scatter_(1, teacher.ids, g[:, :-1] - q_top * total)
    return (temperature**2 * value.sum())[None], gradient.mul_(temperature)


def _log(probability: torch.Tensor) -> torch.Tensor:
    return probability.clamp_min(math.exp(_SMALLEST)).log()
