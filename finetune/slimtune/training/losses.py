"""Losses in closed form, and the one way to reach them without full logits.

A loss maps the logits of some positions to its parts (the first is what is minimised, the others
are logged apart) and to the gradient of the first with respect to the logits. `chunked_loss`
applies the output head to a few hundred supervised positions at a time and keeps only the gradient
with respect to the hidden states (and to the head, where it is trained): never a tensor of
(tokens x vocabulary) beyond one chunk, and nothing is computed twice.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

CHUNK = 256  # positions at a time: 32 MB of float32 logits at Llama-2's vocabulary

Loss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


class TeacherTopK(NamedTuple):
    """The teacher's `k` likeliest tokens at each position, under softmax(logits / temperature).

    ids: (positions, k) int64; log_probabilities: (positions, k) float32, natural logarithms.
    """

    ids: torch.Tensor
    log_probabilities: torch.Tensor


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ -log softmax(logits)[target], and its gradient softmax(logits) - onehot(target).

    logits: (positions, vocabulary) float32, overwritten by the gradient; targets: (positions,).
    Returns ((1,), (positions, vocabulary)).
    """
    log_probabilities = logits.sub_(logits.logsumexp(dim=1, keepdim=True))
    picked = log_probabilities.gather(1, targets[:, None])
    value = -picked.sum()
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, targets[:, None], torch.full_like(picked, -1.0))
    return value[None], gradient


def forward_kl(
    logits: torch.Tensor, teacher: TeacherTopK, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """T² · Σ KL(teacher ‖ softmax(logits / T)) over the top-k tokens and one bucket for the rest.

    The bucket keeps the k teacher probabilities unscaled: dropping it or renormalising measured
    worse. logits: (positions, vocabulary) float32, left as they are. Returns ((1,), gradient of
    their shape). Distillation: Hinton et al., arXiv:1503.02531.
    """
    log_q = (logits / temperature).log_softmax(dim=1)
    log_q_top = log_q.gather(1, teacher.ids)
    p_top = teacher.log_probabilities.exp()
    rest_p = (1 - p_top.sum(1, keepdim=True)).clamp_min(0)
    q = log_q.exp_()
    q_top = q.gather(1, teacher.ids)
    rest_q = (q.scatter(1, teacher.ids, 0.0)).sum(1, keepdim=True).clamp_min(1e-9)
    known = (p_top * (teacher.log_probabilities - log_q_top)).sum()
    bucket = (torch.xlogy(rest_p, rest_p) - rest_p * rest_q.log()).sum()
    # d/dz: q - p on the top-k tokens, q · (1 - rest_p / rest_q) on all others.
    gradient = q.mul_(1 - rest_p / rest_q).scatter_(1, teacher.ids, q_top - p_top)
    return (temperature**2 * (known + bucket))[None], gradient.mul_(temperature)


def distillation(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher: TeacherTopK,
    *,
    alpha: float,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """α · T² · KL(teacher ‖ student) + (1 - α) · cross entropy; parts (total, kd, ce)."""
    kd, kd_gradient = forward_kl(logits, teacher, temperature)
    ce, ce_gradient = cross_entropy(logits, targets)
    total = alpha * kd + (1 - alpha) * ce
    return torch.cat([total, kd, ce]), kd_gradient.mul_(alpha).add_(ce_gradient, alpha=1 - alpha)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: torch.Tensor, weight: torch.Tensor, loss: Loss, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        parts = torch.zeros(1)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.T).float()
            values, gradient = loss(logits, rows)
            parts = values if start == 0 else parts + values
            if wants_hidden:
                hidden_gradient[rows] = gradient.to(weight.dtype) @ weight
            if wants_weight:
                weight_gradient.addmm_(gradient.T, hidden[rows].float())
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(parts)
        return parts[0].clone(), parts

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, _: torch.Tensor) -> tuple:
        hidden, weight = ctx.saved_tensors
        return (
            None if hidden is None else hidden * gradient,
            None if weight is None else (weight * gradient).to(ctx.weight_dtype),
            None,
            None,
        )


def chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, loss: Loss, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of `loss` over positions of `hidden @ weight.T`, and its parts (no gradient).

    hidden: (positions, hidden size); weight: (vocabulary, hidden size). `loss` gets the logits of a
    slice of the positions and that slice.
    """
    return _Chunked.apply(hidden, weight, loss, chunk)
