"""Before the first step, and before a teacher speaks: are the weights those of a model at all?"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from slimtune.inference import guessing
from slimtune.training import losses
from slimtune.training.batches import Sample, collate, encode_text
from slimtune.training.forward import causal_model, loss_parts, supervised

_ROWS = 8  # a blink beside the first step
_TEXT_TOKENS = 128


def require_sound(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sample], reference: str
) -> None:
    """A caution, or InputError, where the model of `reference` is worse than guessing.

    `rows` stand for what it is to learn: a few of them, spread over all, are read.
    """
    chosen = rows[:: max(1, len(rows) // _ROWS)][:_ROWS]
    texts = [encode_text([text], tokenizer, _TEXT_TOKENS) for text in guessing.TEXTS]
    was_training = model.training
    model.eval()
    guessing.judge(
        reference,
        loss_on(model, chosen),
        lambda: min(loss_on(model, text) for text in texts),
        causal_model(model).config.vocab_size,
        explained=guessing.was_pruned(reference),
    )
    model.train(was_training)


@torch.no_grad()
def loss_on(model: nn.Module, samples: Sequence[Sample]) -> float:
    """Cross entropy in nats per supervised token."""
    device = causal_model(model).get_input_embeddings().weight.device
    batch = collate(samples)
    batch |= {name: one.to(device) for name, one in batch.items() if isinstance(one, torch.Tensor)}
    positions = supervised(batch)
    targets = batch["labels"][0, positions + 1]
    parts = loss_parts(
        model, batch, positions, lambda logits, rows: losses.cross_entropy(logits, targets[rows])
    )
    return parts[0].item() / len(positions)
