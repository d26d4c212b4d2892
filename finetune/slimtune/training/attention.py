"""Causal attention inside each sample of a padding-free batch, without a dense mask.

Samples stand one after another in a single row. Attention over all of them with a block-diagonal
mask costs (sum of lengths)^2; attention sample by sample costs the sum of the squares, and every
part runs on torch's fused causal kernel.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "slimtune_per_sample"


def per_sample_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lengths: Sequence[int] | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """softmax(Q Kᵀ · scaling) V within each sample; returns (1, tokens, heads, head size).

    query: (1, heads, tokens, head size); key and value may have fewer heads (GQA). `lengths` are
    the samples' tokens in order; without them the row is one sample.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    sizes = list(lengths) if lengths is not None else [query.shape[2]]
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in zip(
            query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the function known to transformers; returns its name for `attn_implementation`."""
    AttentionInterface.register(NAME, per_sample_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME
