"""Divergences against PyTorch's own KL and autograd, over top-k buckets and over everything."""

import pytest
import torch
from torch.nn import functional

from slimtune.training.divergences import DIVERGENCES, TeacherTopK, between

VOCABULARY, POSITIONS, TEMPERATURE = 23, 6, 1.7


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher's and student's logits, in float64 so that differences are the formulas'."""
    torch.manual_seed(3)
    student = torch.randn(POSITIONS, VOCABULARY, dtype=torch.float64) * 2
    return torch.randn(POSITIONS, VOCABULARY, dtype=torch.float64) * 2, student


def top_k(teacher: torch.Tensor, k: int) -> TeacherTopK:
    values, ids = (teacher / TEMPERATURE).log_softmax(1).topk(k)
    return TeacherTopK(ids, values)


def buckets(log_all: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The same distribution with everything but `ids` in one bucket."""
    rest = log_all.exp().scatter(1, ids, 0.0).sum(1, keepdim=True)
    return torch.cat([log_all.gather(1, ids), rest.log()], dim=1)


def reference(name: str, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """From PyTorch's F.kl_div(input=log b, target=log a) = KL(a ‖ b)."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(b, a, log_target=True, reduction="sum")

    p, q = log_p.exp(), log_q.exp()
    if name == "jsd":
        middle = ((p + q) / 2).log()
        return (kl(log_p, middle) + kl(log_q, middle)) / 2
    skewed = (0.1 * p + 0.9 * q).log()
    return {
        "forward_kl": kl(log_p, log_q),
        "reverse_kl": kl(log_q, log_p),
        "skew_kl": kl(log_p, skewed),
    }[name]


@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_values_and_gradients_are_those_of_pytorch(name: str, k: int, logits) -> None:
    teacher, student = logits
    said = top_k(teacher, k)
    student.requires_grad_()
    log_q = (student / TEMPERATURE).log_softmax(1)
    log_p = (teacher / TEMPERATURE).log_softmax(1)
    expected = reference(name, buckets(log_p, said.ids), buckets(log_q, said.ids))
    (TEMPERATURE**2 * expected).backward()
    value, gradient = between(student.detach(), said, DIVERGENCES[name], TEMPERATURE)
    torch.testing.assert_close(value[0], TEMPERATURE**2 * expected.detach())
    torch.testing.assert_close(gradient, student.grad)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_whole_vocabulary_is_the_exact_divergence(name: str, logits) -> None:
    teacher, student = logits
    log_p, log_q = ((one / TEMPERATURE).log_softmax(1) for one in (teacher, student))
    value, gradient = between(student, top_k(teacher, VOCABULARY), DIVERGENCES[name], TEMPERATURE)
    expected = TEMPERATURE**2 * reference(name, log_p, log_q)
    torch.testing.assert_close(value[0], expected, atol=1e-9, rtol=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_that_agrees_has_nothing_to_learn(name: str, logits) -> None:
    teacher, _ = logits
    value, gradient = between(teacher, top_k(teacher, 5), DIVERGENCES[name], TEMPERATURE)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_give_finite_numbers(name: str) -> None:
    teacher = TeacherTopK(torch.tensor([[0, 1]]), torch.tensor([[0.0, -25.0]]))
    logits = torch.tensor([[-200.0, 300.0, 0.0, -400.0]])
    value, gradient = between(logits, teacher, DIVERGENCES[name], 1.0)
    assert value.isfinite().all() and gradient.isfinite().all()
