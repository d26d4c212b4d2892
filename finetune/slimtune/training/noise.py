"""NEFTune (arXiv:2310.05914): noise on the embeddings in training, none in evaluation or on disk.

transformers' own reckons the noise by the row's length; a padding-free row holds a whole batch, so
there it would be too weak by the square root of the batch size. Here each sample counts alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slimtune.training.forward import causal_model


@contextmanager
def neftune(model: nn.Module, alpha: float) -> Iterator[None]:
    """Within, and while the model trains, each embedding e of a sample of n tokens becomes
    e + u, u uniform in ±alpha / √(n · hidden size). An `alpha` of 0 does nothing."""
    if alpha == 0:
        yield
        return
    causal = causal_model(model)
    positions: list[torch.Tensor] = []

    def remember(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        positions[:] = [kwargs["position_ids"]]

    def add_noise(module: nn.Module, args: tuple, embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        bound = alpha / (lengths(positions[0]) * embedded.shape[-1]).sqrt()
        noise = torch.zeros_like(embedded).uniform_(-1, 1)
        return embedded + noise * bound[..., None].to(embedded.dtype)

    hooks = [
        # On the decoder: peft calls the causal model's forward without its hooks.
        causal.base_model.register_forward_pre_hook(remember, with_kwargs=True),
        causal.get_input_embeddings().register_forward_hook(add_noise),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def lengths(positions: torch.Tensor) -> torch.Tensor:
    """For each token the length of its sample; `positions` (1, tokens) count from 0 in each."""
    samples = (positions[0] == 0).cumsum(0) - 1
    return samples.bincount()[samples][None]
