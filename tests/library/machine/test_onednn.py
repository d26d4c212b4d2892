"""Products through oneDNN: the numbers of float64, every layout, and torch as before afterwards."""

import pytest
import torch
from torch.nn import functional as F

from slimtune.machine import onednn
from slimtune.machine.tricks import SWITCH

LARGE = (128, 96, 192)  # rows, inner, columns: above the size from which oneDNN is called


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def called(monkeypatch):
    """The number of products that oneDNN got."""
    calls, real = [], onednn._linear
    monkeypatch.setattr(onednn, "_linear", lambda *words: calls.append(1) or real(*words))
    return calls


def matrix(rows: int, columns: int, layout: str) -> torch.Tensor:
    if layout == "columns":
        return torch.randn(columns, rows).t()
    if layout == "slice":
        return torch.randn(rows, columns + 3)[:, :columns]
    if layout == "expanded":
        return torch.randn(1, columns).expand(rows, columns)
    return torch.randn(rows, columns)


@pytest.mark.parametrize("left", ["rows", "columns", "slice", "expanded"])
@pytest.mark.parametrize("right", ["rows", "columns", "slice", "expanded"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_float64s_to_rounding_in_every_layout(left, right, with_bias):
    m, k, n = LARGE
    a, b, bias = matrix(m, k, left), matrix(k, n, right), torch.randn(n)
    exact = a.double() @ b.double() + (bias.double() if with_bias else 0)
    with onednn.through_onednn():
        found = torch.addmm(bias, a, b) if with_bias else a @ b
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_large_float32_products_go_to_onednn_and_all_others_do_not(called):
    m, k, n = LARGE
    a, b, bias = torch.randn(m, k), torch.randn(k, n), torch.randn(n)
    with onednn.through_onednn():
        _ = a @ b, torch.addmm(bias, a, b)
        assert len(called) == 2
        _ = a[:4] @ b, a[:127] @ b, a.double() @ b.double(), a.bfloat16() @ b.bfloat16()
        _ = torch.addmm(bias, a, b, alpha=2), torch.addmm(torch.randn(m, n), a, b, beta=0.5)
        _ = a[:0] @ b, a.to("meta") @ b.to("meta")
    assert len(called) == 2


def test_scaled_and_empty_products_keep_their_values():
    m, k, n = LARGE
    a, b, bias = torch.randn(m, k), torch.randn(k, n), torch.randn(n)
    with onednn.through_onednn():
        torch.testing.assert_close(torch.addmm(bias, a, b, alpha=2, beta=3), 2 * (a @ b) + 3 * bias)
        assert (a[:0] @ b).shape == (0, n)
        assert torch.equal(a[:, :0] @ b[:0], torch.zeros(m, n))


def test_gradients_take_the_same_way(called):
    m, k, n = LARGE
    x, weight = torch.randn(1, m, k, requires_grad=True), torch.randn(n, k, requires_grad=True)
    bias = torch.randn(n, requires_grad=True)
    inputs = (x, weight, bias)
    exact = torch.autograd.grad(F.linear(*(one.double() for one in inputs)).square().sum(), inputs)
    with onednn.through_onednn():
        found = torch.autograd.grad(F.linear(*inputs).square().sum(), inputs)
    assert len(called) == 3, "forward, and the gradients of inputs and weights"
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_torch_is_as_before_when_it_ends_also_by_an_error(called):
    a, b = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    before = a @ b
    with pytest.raises(ZeroDivisionError), onednn.through_onednn():
        raise ZeroDivisionError
    assert torch.equal(a @ b, before)
    assert not called


def test_one_inside_another_leaves_the_outer_one_at_work(called):
    a, b = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    with onednn.through_onednn():
        with onednn.through_onednn():
            _ = a @ b
        assert len(called) == 1
        _ = a @ b
    assert len(called) == 2


def test_the_first_may_leave_before_the_second(called):
    a, b = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    first, second = onednn.through_onednn(), onednn.through_onednn()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    _ = a @ b
    assert len(called) == 1
    second.__exit__(None, None, None)
    _ = a @ b
    assert len(called) == 1


def test_nothing_is_changed_when_the_trick_is_off(called, monkeypatch):
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: True)
    monkeypatch.setenv(SWITCH, "onednn")
    with onednn.onednn_products():
        assert onednn.padded_length(865) == 865
        _ = torch.randn(LARGE[0], LARGE[1]) @ torch.randn(LARGE[1], LARGE[2])
    assert not called


@pytest.mark.parametrize(
    ("processor", "avx512", "chosen"),
    [("AuthenticAMD", True, True), ("AuthenticAMD", False, False), ("GenuineIntel", True, False)],
)
def test_only_amd_processors_with_avx512_change_anything(
    monkeypatch, called, processor, avx512, chosen
):
    monkeypatch.setattr(onednn, "_processor", lambda: f"vendor_id : {processor}")
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    with onednn.onednn_products():
        _ = torch.randn(LARGE[0], LARGE[1]) @ torch.randn(LARGE[1], LARGE[2])
    assert bool(called) is chosen


def test_batches_are_filled_to_few_sizes_and_only_where_it_helps() -> None:
    assert [onednn.padded_length(rows) for rows in (1, 64, 865)] == [1, 64, 865]
    with onednn.through_onednn():
        sizes = {rows: onednn.padded_length(rows) for rows in range(1, 4097)}
    assert onednn.padded_length(865) == 865
    assert all(rows <= size and size % 64 == 0 for rows, size in sizes.items())
    assert all(size < 1.125 * rows for rows, size in sizes.items() if rows >= 512)
    assert len(set(sizes.values())) == 8 + 8 + 8 + 8  # up to 512, 1024, 2048 and 4096
