"""The closed-form refit is ridge regression on the calibration inputs, and it helps."""

import torch

from slimtune.pruning.refit import RIDGE, refit

torch.set_num_threads(1)


def world(columns=12, out=5, tokens=200):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(tokens, 8, generator=generator, dtype=torch.float64)
    inputs = mixed @ torch.randn(8, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(out, columns, generator=generator, dtype=torch.float64)
    return inputs, weight, torch.tensor([0, 2, 3, 5, 7, 8, 10, 11])


def test_it_is_the_ridge_regression_of_old_outputs_on_kept_inputs():
    inputs, weight, kept = world()
    few = inputs[:, kept]
    ridge = RIDGE * (few * few).sum(dim=0).mean()
    # Independent: least squares with sqrt(ridge) * I stacked below the inputs.
    stacked = torch.cat([few, ridge.sqrt() * torch.eye(len(kept), dtype=torch.float64)])
    targets = torch.cat([inputs @ weight.T, torch.zeros(len(kept), len(weight)).double()])
    expected = torch.linalg.lstsq(stacked, targets).solution.T
    torch.testing.assert_close(refit(weight, inputs.T @ inputs, kept), expected)


def test_the_error_left_is_far_below_that_of_the_plain_cut():
    inputs, weight, kept = world()
    old = inputs @ weight.T
    plain = (old - inputs[:, kept] @ weight[:, kept].T).norm()
    solved = refit(weight, inputs.T @ inputs, kept)
    assert (old - inputs[:, kept] @ solved.T).norm() < 0.1 * plain


def test_keeping_every_column_changes_next_to_nothing_and_type_stays():
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    solved = refit(weight, inputs.T @ inputs, torch.arange(6))
    assert solved.dtype == torch.bfloat16
    torch.testing.assert_close(solved.float(), weight.float(), rtol=0.01, atol=0.01)


def test_inputs_that_are_all_zero_leave_the_plain_cut():
    """A layer that the one before it never speaks to: weights of zeros, as a damaged file has."""
    _, weight, kept = world()
    silent = torch.zeros(12, 12, dtype=torch.float64)
    torch.testing.assert_close(refit(weight, silent, kept), weight[:, kept], rtol=0, atol=0)
