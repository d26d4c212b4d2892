"""Losses in closed form, and the one way to reach them without full logits.

A loss maps the logits of some positions to its parts (the first is what is minimised, the others
are logged apart) and to the gradient of the first with respect to the logits. `chunked_loss`
applies the output head to some supervised positions at a time and keeps only the gradient with
respect to the hidden states (and to what is trained in the head): never a tensor of
(tokens x vocabulary) beyond one chunk, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

# Positions at a time. On a CPU 16 MB of float32 logits (Llama-2's vocabulary) stay in the cache:
# 64 to 256 measured the same speed; a GPU wants larger products.
CHUNK = {"cpu": 128, "cuda": 1024}

Head = Callable[[torch.Tensor], torch.Tensor]

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
    picked = logits.gather(1, targets[:, None])
    # In place, with one exponential: logsumexp and exp would take two and a second chunk.
    largest = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    value = (total.log() + largest - picked).sum()
    gradient = logits.div_(total)
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
    """Forward and backward of the head in one: gradients wait in the graph, logits do not."""

    @staticmethod
    def forward(
        ctx, hidden: torch.Tensor, head: Head, loss: Loss, chunk: int, *trained: torch.Tensor
    ) -> torch.Tensor:
        gradients = [torch.empty_like(hidden), *map(_sum_like, trained)]
        learns = any(ctx.needs_input_grad)
        total: torch.Tensor | None = None
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            with torch.set_grad_enabled(learns):
                inputs = hidden[rows].detach().requires_grad_(learns)
                logits = head(inputs)
            parts, gradient = loss(logits.detach().float(), rows)
            total = parts if total is None else total + parts
            if learns:
                found = torch.autograd.grad(
                    logits, [inputs, *trained], gradient.to(logits.dtype), allow_unused=True
                )
                gradients[0][rows] = found[0]
                for added, one in zip(gradients[1:], found[1:], strict=True):
                    if one is not None:
                        added.add_(one)
        if learns:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = [hidden.dtype, *(one.dtype for one in trained)]
        return total

    @staticmethod
    def backward(ctx, upstream: torch.Tensor) -> tuple:
        hidden, *trained = (
            (one * upstream[0]).to(dtype)
            for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, None, None, None, *trained


def _sum_like(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32)


def chunked_loss(
    hidden: torch.Tensor,
    head: Head,
    loss: Loss,
    trained: Sequence[torch.Tensor] = (),
    chunk: int | None = None,
) -> torch.Tensor:
    """The parts of `loss`, each summed over the positions; only the first has a gradient.

    hidden: (positions, hidden size); `head` maps some of its rows to logits (rows, vocabulary);
    `trained` are the head's parameters that want a gradient; `loss` gets the logits of a slice of
    the positions and that slice.
    """
    return _Chunked.apply(hidden, head, loss, chunk or CHUNK[hidden.device.type], *trained)
