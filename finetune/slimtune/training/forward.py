"""A model's forward that ends in the parts of a loss instead of logits.

The output head computes the loss chunk by chunk inside the model's own forward, with every wrapper
and hook around it: adapters on the head work as they are, and a sharded head is whole at that
moment.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from slimtune.errors import InputError
from slimtune.models.family import families_in_words
from slimtune.models.mixed import numbers_of
from slimtune.prompts import IGNORED
from slimtune.training import attention, losses
from slimtune.training.batches import Sample, collate, ready

_PROBE = 48  # tokens of each of two samples: a blink for any model
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


def supervised(batch: dict[str, Any]) -> torch.Tensor:
    """The places in a batch's row of tokens whose next token is learned."""
    return (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(1)


def loss_parts(
    model: nn.Module, batch: dict[str, Any], positions: torch.Tensor, loss: losses.Loss
) -> torch.Tensor:
    """The parts of `loss`, each summed over `positions`; the first can be differentiated."""
    causal = causal_model(model)
    how = causal.config._attn_implementation
    batch, positions = ready(batch, positions, shares=attention.shares_beginnings(how))
    with _losses_from(causal.get_output_embeddings(), loss):
        return model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            logits_to_keep=positions,
            use_cache=False,
            **attention.bounds(batch["lengths"], how, positions.device),
        ).logits


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model with its output head, under any wrapper."""
    while not isinstance(model, (PeftModel, PreTrainedModel)):
        model = model.module  # DistributedDataParallel
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _losses_from(head: nn.Module, loss: losses.Loss) -> Iterator[None]:
    """Within, the head returns the parts of the loss instead of logits."""
    before = vars(head).get("forward")
    project: Callable[[torch.Tensor], torch.Tensor] = head.forward

    def parts(hidden: torch.Tensor) -> torch.Tensor:
        # Only in here are the weights of a sharded head whole.
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        return losses.chunked_loss(hidden[0], project, loss, trained)

    head.forward = parts
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


@torch.no_grad()
def require_exact(model: nn.Module, samples: Sequence[Sample]) -> None:
    """InputError unless two samples in one row cost what the family's own code says they do alone.

    A family that scales its logits, or attends in a way of its own, would train wrongly in silence.
    """
    causal = causal_model(model)
    short = [Sample(one.input_ids[:_PROBE], one.input_ids[:_PROBE]) for one in samples[:2]]
    model.eval()
    ours, theirs = _packed(model, short), _one_by_one(model, causal, short)
    if abs(ours - theirs) > _TOLERANCE[numbers_of(causal)] * abs(theirs):
        raise InputError(
            f"{causal.config.model_type}: this family cannot be trained here",
            f"its own code gives a loss of {theirs:.4f}, the fast path {ours:.4f}: it scales its "
            "logits or attends in a way of its own",
            f"choose a base of the {families_in_words('or')} family",
        )


def _packed(model: nn.Module, samples: Sequence[Sample]) -> float:
    batch = collate(samples)
    batch = {n: v.to(model.device) if torch.is_tensor(v) else v for n, v in batch.items()}
    positions = supervised(batch)
    targets = batch["labels"][0, positions + 1]
    parts = loss_parts(
        model, batch, positions, lambda z, rows: losses.cross_entropy(z, targets[rows])
    )
    return parts[0].item() / len(positions)


def _one_by_one(model: nn.Module, causal: PreTrainedModel, samples: Sequence[Sample]) -> float:
    ours = causal.config._attn_implementation
    causal.set_attn_implementation("eager")  # the one that every family has
    try:
        total = count = 0
        for sample in samples:
            ids = torch.tensor([sample.input_ids], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += len(logits)
    finally:
        causal.set_attn_implementation(ours)
    return total / count
