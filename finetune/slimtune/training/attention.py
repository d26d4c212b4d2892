"""Causal attention inside each sample of a padding-free batch, without a dense mask.

Samples stand one after another in a single row. Attention over all of them with a block-diagonal
mask costs (sum of lengths)^2; attention sample by sample costs the sum of the squares, and every
part runs on torch's fused causal kernel. `training_compute` decides for a whole run which
implementation it is, with device, numbers and shares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from slimtune.errors import InputError
from slimtune.models.compute import Compute, ComputeSettings
from slimtune.models.family import families_in_words
from slimtune.models.mixed import is_mixed
from slimtune.training import sharding
from slimtune.training.prefixes import Piece

NAME = "slimtune_per_sample"
_FLASH = "flash_attention_2"


def training_compute(model: ComputeSettings, *, streamed: bool = False) -> Compute:
    """What the settings of a model come to where it trains: with attention for rows of samples, and
    its weights shared out where the launcher says so, or left in their files."""
    compute = replace(Compute.of(model), streamed=streamed)
    implementation = register(compute.device.type, compute.dtype)
    return replace(compute, attention=implementation, shares=sharding.weight_parts())


def register(device: str = "cpu", numbers: torch.dtype = torch.float32) -> str:
    """The name for `attn_implementation`, made known to transformers.

    flash-attn's kernel for rows of samples (varlen) on a GPU that has it, in 16 bits; else ours.
    """
    if device == "cuda" and numbers != torch.float32 and find_spec("flash_attn"):
        return _FLASH
    AttentionInterface.register(NAME, per_sample_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def bounds(lengths: Sequence[Piece], name: str, device: torch.device) -> dict[str, object]:
    """Keyword arguments that tell an implementation where the samples of a row begin and end."""
    if name != _FLASH:
        return {"lengths": lengths}
    ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def shares_beginnings(name: str) -> bool:
    """Whether an implementation lets samples share a beginning: ours does, no kernel of others."""
    return name == NAME


def per_sample_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lengths: Sequence[Piece] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """softmax(Q Kᵀ · scaling) V within each sample; returns (1, tokens, heads, head size).

    query: (1, heads, tokens, head size); key and value may have fewer heads (GQA). `lengths` are
    the samples' tokens in order, or a beginning's and those of what follows it in each sample that
    shares it (`prefixes`); without them the row is one sample. A position sees itself and the
    `sliding_window` - 1 before it. Raises InputError for capped scores and attention sinks.
    """
    if softcap is not None or s_aux is not None:
        raise InputError(
            f"{type(module).__name__}: this family caps its attention scores or has sinks",
            "the fused kernel that trains here computes neither, and would be wrong in silence",
            f"choose a base of the {families_in_words('or')} family",
        )
    pieces = list(lengths) if lengths is not None else [query.shape[2]]
    whole = sliding_window is None or _longest(pieces) <= sliding_window
    if is_mixed(query) and whole and not dropout:
        return _Widened.apply(query, key, value, pieces, scaling), None
    if is_mixed(query):
        query, key, value = (part.float() for part in (query, key, value))
    key, value = (_for_each(query, part) for part in (key, value))
    parts = iter(zip(*(part.split(_sizes(pieces), 2) for part in (query, key, value)), strict=True))
    outputs = []
    for piece in pieces:
        q, k, v = next(parts)
        outputs.append(_causal(q, k, v, scaling, dropout, sliding_window))
        for _ in piece[1:] if isinstance(piece, tuple) else ():
            rest, *own = next(parts)
            both = (torch.cat(pair, dim=2) for pair in zip((k, v), own, strict=True))
            outputs.append(_causal(rest, *both, scaling, dropout, sliding_window))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _sizes(pieces: Sequence[Piece]) -> list[int]:
    return [n for piece in pieces for n in (piece if isinstance(piece, tuple) else (piece,))]


def _longest(pieces: Sequence[Piece]) -> int:
    return max(one if isinstance(one, int) else one[0] + max(one[1:]) for one in pieces)


def _for_each(query: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Keys or values once for each head of the queries, of which several may look at one."""
    groups = query.shape[1] // part.shape[1]
    return part.repeat_interleave(groups, dim=1) if groups > 1 else part


class _Widened(torch.autograd.Function):
    """Attention within each sample in float32, of bfloat16 and to bfloat16, on a CPU.

    The kernel's backward pass takes four times as long in bfloat16. Kept are the inputs, keys and
    values as few as they are, and what comes out, in bfloat16, and a number for each query. One
    sample after another: several in one call, with blanks, leave the cache and take as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: Sequence[Piece],
        scale: float | None,
    ) -> torch.Tensor:
        output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        sums = []
        for own, seen, mask in _places(pieces):
            q = query[:, :, own].float()
            k, v = (_for_each(query, _at(part, seen)) for part in (key, value))
            found, logs = _KERNEL(q, k, v, 0.0, **mask, scale=scale)
            output[:, own] = found.transpose(1, 2)
            sums.append(logs)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.pieces, ctx.scale = pieces, scale
        return output

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        query, key, value, output, *sums = ctx.saved_tensors
        to_query = torch.empty_like(query)
        # What many samples say to a beginning that they share is added up: not in bfloat16.
        to_both = [torch.zeros_like(one, dtype=torch.float32) for one in (key, value)]
        above, out = (one.transpose(1, 2) for one in (upstream, output))
        for (own, seen, mask), logs in zip(_places(ctx.pieces), sums, strict=True):
            given, q, came = (one[:, :, own].float() for one in (above, query, out))
            k, v = (_for_each(query, _at(part, seen)) for part in (key, value))
            found = _GRADIENT(given, q, k, v, came, logs, 0.0, **mask, scale=ctx.scale)
            to_query[:, :, own] = found[0]
            sizes = [place.stop - place.start for place in seen]
            for whole, part in zip(to_both, found[1:], strict=True):
                part = part.unflatten(1, (whole.shape[1], -1)).sum(2)
                for place, one in zip(seen, part.split(sizes, 2), strict=True):
                    whole[:, :, place] += one
        return to_query, *(one.to(query.dtype) for one in to_both), None, None


_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_GRADIENT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _places(pieces: Sequence[Piece]) -> Iterator[tuple[slice, list[slice], dict[str, Any]]]:
    """Of each part of the row its place, the places of the keys that it sees, and the kernel's
    arguments for queries at the end of the keys."""
    start = 0
    for piece in pieces:
        first, *rests = piece if isinstance(piece, tuple) else (piece,)
        beginning = slice(start, start + first)
        yield beginning, [beginning], {"is_causal": True}
        start += first
        longest = max(rests, default=0)
        hidden = torch.full((longest, first + longest), -torch.inf).triu(first + 1)
        for rest in rests:
            own = slice(start, start + rest)
            mask = {"is_causal": False, "attn_mask": hidden[:rest, : first + rest]}
            yield own, [beginning, own], mask
            start += rest


def _at(part: torch.Tensor, places: Sequence[slice]) -> torch.Tensor:
    return torch.cat([part[:, :, place] for place in places], dim=2).float()


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Of the last positions of `key`, those of `query`; all, where there are as many."""
    length, before = key.shape[2], key.shape[2] - query.shape[2]
    if not before and (window is None or length <= window):
        return scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scale
        )
    seen = torch.ones(length - before, length, dtype=torch.bool, device=query.device).tril(before)
    if window is not None:
        seen = seen.triu(before + 1 - window)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, scale=scale
    )
