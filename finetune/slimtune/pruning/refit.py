"""After a cut: what stays is solved again, so that it makes up for what went."""

import torch

RIDGE = 1e-3


def refit(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """W_new^T = (G_SS + l I)^-1 G_S: W^T,  l = RIDGE * mean(diag G_SS): ridge regression.

    The columns S that stay of a linear layer are chosen so that its outputs on the calibration
    inputs change least: argmin |X W^T - X_S W_new^T|^2 + l |W_new|^2.

    weight: (out, in), the old W. gram: (in, in), G = X^T X over calibration inputs X (tokens, in),
    best in float64. kept: (size,), the columns S. Returns (out, size) in the type of `weight`.
    Inputs that are all zero leave nothing to make up for: W_S then. Raises
    torch.linalg.LinAlgError if G is not finite.
    Compare SparseGPT (arXiv:2301.00774), which solves the same problem for single weights.
    """
    rows = gram[kept].double()
    target = rows @ weight.double().T
    # In place from here on: for the FFN of a 7B model each of these is half a gigabyte.
    system = rows[:, kept]
    del rows
    ridge = RIDGE * system.diagonal().mean()
    if ridge == 0:
        return weight[:, kept].contiguous()
    system.diagonal().add_(ridge)
    torch.linalg.cholesky(system, out=system)
    return torch.cholesky_solve(target, system).T.to(weight.dtype).contiguous()
