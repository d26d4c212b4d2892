"""Losses in closed form, and the one way to reach them without full logits.

A loss maps the logits of some positions to its parts (the first is what is minimised, the others
are logged apart) and to the gradient of the first with respect to the logits. `chunked_loss`
applies the output head to some supervised positions at a time and keeps only the gradient with
respect to the hidden states (and to what is trained in the head): never a tensor of
(tokens x vocabulary) beyond one chunk, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence

import torch

from slimtune.training.divergences import Divergence, TeacherTopK, between

# Positions at a time. On a CPU 128 rows of Llama-2's vocabulary are 16 MB, which stay in the cache:
# 96 to 256 rows measured the same speed, 64 and 272 were 10 % slower. A GPU wants larger products.
CHUNK = {"cpu": 128, "cuda": 1024}

Head = Callable[[torch.Tensor], torch.Tensor]

Loss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ -log softmax(logits)[target], and its gradient softmax(logits) - onehot(target).

    logits: (positions, vocabulary) float32, overwritten by the gradient; targets: (positions,).
    Returns ((1,), (positions, vocabulary)).
    """
    picked, largest = logits.gather(1, targets[:, None]), logits.amax(dim=1, keepdim=True)
    # In place and by one kernel: single steps take twice the time, another tensor a second chunk.
    gradient = torch.softmax(logits, dim=1, out=logits)
    # log Σ exp from the largest probability, which is at least 1 / vocabulary: no log of 0.
    value = (largest - gradient.amax(dim=1, keepdim=True).log() - picked).sum(0)
    gradient.scatter_add_(1, targets[:, None], torch.full_like(picked, -1.0))
    return value, gradient


def distillation(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher: TeacherTopK,
    *,
    divergence: Divergence,
    alpha: float,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """α · T² · D(teacher, student) + (1 - α) · cross entropy; parts (total, kd, ce)."""
    kd, kd_gradient = between(logits, teacher, divergence, temperature)
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
                del found
            del logits, gradient  # before the next chunk's are made
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
