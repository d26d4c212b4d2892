"""How well a model expects given tokens: −ln p of the supervised ones, and only of those."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from slimtune.inference.answers import TokenLosses
from slimtune.inference.batching import left_padded, run_batched
from slimtune.prompts import IGNORED

LOGIT_BYTES = 2**28
LOSS_TOKEN_BUDGET = 8192


def token_losses(
    model: PreTrainedModel,
    examples: Sequence[Mapping[str, Sequence[int]]],
    *,
    token_budget: int = LOSS_TOKEN_BUDGET,
    known: Collection[int] = frozenset(),
) -> Iterator[tuple[int, TokenLosses]]:
    """(row, losses) of each example's supervised tokens, batch by batch.

    Examples are `prompts.encode`'s (input_ids, labels). Rows that are `known` are left out as
    `run_batched` says; logits of a batch stay within 256 MB.
    """
    budget = min(token_budget, LOGIT_BYTES // (4 * model.config.vocab_size))
    lengths = [len(example["input_ids"]) for example in examples]
    return run_batched(
        lengths, budget, lambda rows: batch_losses(model, [examples[row] for row in rows]), known
    )


@torch.inference_mode()
def batch_losses(
    model: PreTrainedModel, examples: Sequence[Mapping[str, Sequence[int]]]
) -> list[TokenLosses]:
    """The losses of examples that are read side by side; a row without labels has none.

    Logits exist only from the first supervised position of the batch on, in the model's own type,
    and become fp32 only where a label is.
    """
    labels = _left_padded_labels([example["labels"] for example in examples], model.device)
    supervised = labels != IGNORED
    if not supervised.any():
        return [TokenLosses([], []) for _ in examples]
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
    where = supervised[:, first:]
    logits, wanted = output.logits[where], labels[:, first:][where]
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    hits = logits.argmax(-1) == wanted
    counts = where.sum(1).tolist()  # the mask went through row by row, so rows lie in a piece each
    pairs = zip(losses.split(counts), hits.split(counts), strict=True)
    return [TokenLosses(nats.tolist(), hit.tolist()) for nats, hit in pairs]


def _left_padded_labels(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Labels (rows, longest) moved left by one: column t holds what position t predicts."""
    longest = max(map(len, rows))
    padded = [[IGNORED] * (longest - len(row)) + [*row[1:], IGNORED] for row in rows]
    return torch.tensor(padded, device=device)
