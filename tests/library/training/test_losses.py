"""Closed-form losses against torch's own functions and autograd."""

import pytest
import torch
from torch.nn import functional as F

from slimtune.training import losses
from slimtune.training.divergences import DIVERGENCES, TeacherTopK, between

torch.manual_seed(0)
POSITIONS, HIDDEN, VOCABULARY = 37, 16, 50


def world() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(POSITIONS, HIDDEN, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (POSITIONS,))
    teacher = torch.randn(POSITIONS, VOCABULARY) * 3
    return hidden, weight, targets, teacher


def teacher_top(logits: torch.Tensor, k: int) -> TeacherTopK:
    top = logits.log_softmax(-1).topk(k)
    return TeacherTopK(top.indices, top.values)


@pytest.mark.parametrize("chunk", [1, 8, 37, 1000])
def test_chunked_cross_entropy_is_torchs(chunk: int) -> None:
    hidden, weight, targets, _ = world()
    parts = losses.chunked_loss(
        hidden,
        lambda rows: rows @ weight.T,
        lambda z, rows: losses.cross_entropy(z, targets[rows]),
        [weight],
        chunk,
    )
    (parts[0] * 0.5).backward()
    ours = (hidden.grad.clone(), weight.grad.clone())
    hidden.grad = weight.grad = None
    reference = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (reference * 0.5).backward()
    torch.testing.assert_close(parts[0], reference)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets, _ = world()
    losses.chunked_loss(
        hidden,
        lambda rows: rows @ weight.detach().T,
        lambda z, rows: losses.cross_entropy(z, targets[rows]),
    )[0].backward()
    assert hidden.grad is not None and weight.grad is None


@pytest.mark.parametrize("name", DIVERGENCES)
def test_distillation_mixes_and_reports_its_parts(name: str) -> None:
    _, _, targets, teacher = world()
    logits = torch.randn(POSITIONS, VOCABULARY)
    top, divergence = teacher_top(teacher, 8), DIVERGENCES[name]
    parts, gradient = losses.distillation(
        logits.clone(), targets, top, divergence=divergence, alpha=0.3, temperature=1.0
    )
    kd, kd_gradient = between(logits.clone(), top, divergence, 1.0)
    ce, ce_gradient = losses.cross_entropy(logits.clone(), targets)
    torch.testing.assert_close(parts, torch.cat([0.3 * kd + 0.7 * ce, kd, ce]))
    torch.testing.assert_close(gradient, 0.3 * kd_gradient + 0.7 * ce_gradient)


def test_no_chunk_of_logits_is_larger_than_asked() -> None:
    hidden, weight, targets, _ = world()
    seen = []

    def loss(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(logits.shape[0])
        return losses.cross_entropy(logits, targets[rows])

    losses.chunked_loss(hidden, lambda rows: rows @ weight.T, loss, chunk=10)
    assert seen == [10, 10, 10, 7]
