"""How well a model expects the reference answers: the loss of their tokens, and only of theirs."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from slimtune.inference.answers import AnswerLoss
from slimtune.inference.batching import left_padded, run_batched

LOGIT_BYTES = 2**28
LOSS_TOKEN_BUDGET = 8192


def answer_losses(
    model: PreTrainedModel,
    examples: Sequence[Mapping[str, Sequence[int]]],
    *,
    token_budget: int = LOSS_TOKEN_BUDGET,
    known: Collection[int] = frozenset(),
) -> Iterator[tuple[int, AnswerLoss]]:
    """(row, loss) of each example's answers; examples are `prompts.encode`'s (input_ids, labels).

    Logits exist only from the first supervised position of a batch on, in the model's own type and
    within 256 MB, and become fp32 only where a label is. A row without labels has 0 tokens.
    """
    budget = min(token_budget, LOGIT_BYTES // (4 * model.config.vocab_size))
    lengths = [len(example["input_ids"]) for example in examples]
    return run_batched(
        lengths, budget, lambda rows: _batch_losses(model, [examples[row] for row in rows]), known
    )


@torch.inference_mode()
def _batch_losses(
    model: PreTrainedModel, examples: list[Mapping[str, Sequence[int]]]
) -> list[AnswerLoss]:
    labels = _left_padded_labels([example["labels"] for example in examples], model.device)
    supervised = labels != -100
    if not supervised.any():
        return [AnswerLoss(0.0, 0) for _ in examples]
    ids, mask, positions = left_padded([e["input_ids"] for e in examples], model.device)
    # The ends are aligned, so the answers of a batch lie in one block of columns at its end.
    first = int(supervised.any(0).nonzero()[0])
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=labels.shape[1] - first,
    )
    where, targets = supervised[:, first:], labels[:, first:]
    logits, wanted, rows = output.logits[where], targets[where], where.nonzero()[:, 0]
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    hits = logits.argmax(-1) == wanted
    sums = losses.new_zeros(3, len(examples), dtype=torch.float64)
    for row, values in zip(sums, (losses, torch.ones_like(losses), hits), strict=True):
        row.index_add_(0, rows, values.double())
    return [AnswerLoss(nats, int(tokens), int(hit)) for nats, tokens, hit in sums.T.tolist()]


def _left_padded_labels(rows: list[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Labels (rows, longest) moved left by one: column t holds what position t predicts."""
    longest = max(map(len, rows))
    padded = [[-100] * (longest - len(row)) + [*row[1:], -100] for row in rows]
    return torch.tensor(padded, device=device)
