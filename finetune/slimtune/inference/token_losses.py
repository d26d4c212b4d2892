"""How well a model expects given tokens: −ln p of the supervised ones, and only of those."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from slimtune.inference.answers import SCORED, TokenLosses
from slimtune.inference.batching import before_needed, left_padded, read_beginning, run_batched
from slimtune.inference.top_choices import Plan, Plans
from slimtune.prompts import IGNORED

LOGIT_BYTES = 2**28
LOSS_TOKEN_BUDGET = 8192


def token_losses(
    model: PreTrainedModel,
    examples: Sequence[Mapping[str, Sequence[int]]],
    *,
    token_budget: int = LOSS_TOKEN_BUDGET,
    known: Collection[int] = frozenset(),
    distributions: Plans | None = None,
) -> Iterator[tuple[int, TokenLosses]]:
    """(row, losses) of each example's supervised tokens, batch by batch.

    Examples are `prompts.encode`'s (input_ids, labels). Rows that are `known` are left out as
    `run_batched` says; logits of a batch stay within 256 MB. `distributions` says which rows'
    predictions are kept, or compared with an original's.
    """
    budget = min(token_budget, LOGIT_BYTES // (4 * model.config.vocab_size))
    lengths = [len(example["input_ids"]) for example in examples]

    def losses(rows: list[int]) -> list[TokenLosses]:
        batch = [examples[row] for row in rows]
        plans = [_plan(distributions, row, examples[row]["labels"]) for row in rows]
        return batch_losses(model, batch, plans)

    return run_batched(lengths, budget, losses, known, SCORED)


def _plan(distributions: Plans | None, row: int, labels: Sequence[int]) -> Plan | None:
    if distributions is None:
        return None
    return distributions.row(row, range(sum(label != IGNORED for label in labels[1:])))


@torch.inference_mode()
def batch_losses(
    model: PreTrainedModel,
    examples: Sequence[Mapping[str, Sequence[int]]],
    plans: Sequence[Plan | None] = (),
) -> list[TokenLosses]:
    """The losses of examples that are read side by side; a row without labels has none.

    Each row that has a plan is kept or compared as it says. Logits exist only from the first
    supervised position of the batch on, in the model's own type, and become fp32 only where a label
    is.
    """
    tokens = [example["input_ids"] for example in examples]
    targets = [example["labels"] for example in examples]
    shared, cache = read_beginning(model, tokens, [*map(before_needed, targets)])
    labels = _left_padded_labels([own[shared:] for own in targets], model.device)
    supervised = labels != IGNORED
    if not supervised.any():
        return [TokenLosses([], []) for _ in examples]
    ids, mask, positions = left_padded(tokens, model.device, shared)
    # The ends are aligned, so the answers of a batch lie in one block of columns at its end.
    first = int(supervised.any(0).nonzero()[0])
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=labels.shape[1] - first,
    )
    where = supervised[:, first:]
    logits, wanted = output.logits[where], labels[:, first:][where]
    logs = F.log_softmax(logits.float(), -1)
    losses = F.nll_loss(logs, wanted, reduction="none")
    hits = logits.argmax(-1) == wanted
    first_choice, second_choice = logs.topk(2).values.unbind(-1)
    margins = (first_choice - second_choice) * hits
    counts = where.sum(1).tolist()  # the mask went through row by row, so rows lie in a piece each
    pieces = (one.split(counts) for one in (losses, hits, margins, logs))
    rows = zip(*pieces, plans or [None] * len(examples), strict=True)
    return [
        TokenLosses(nats.tolist(), hit.tolist(), *_beside(seen, plan), margins=leads.tolist())
        for nats, hit, leads, seen, plan in rows
    ]


def _beside(logs: torch.Tensor, plan: Plan | None) -> tuple[list[float], list[bool]]:
    """Divergences and agreements of a row's (tokens, vocabulary) log-probabilities."""
    if plan is None:
        return [], []
    one = plan.open()
    for seen in logs.cpu().numpy():
        one.add(seen)
    one.close()
    return one.divergences, one.agreements


def _left_padded_labels(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Labels (rows, longest) moved left by one: column t holds what position t predicts."""
    longest = max(map(len, rows))
    padded = [[IGNORED] * (longest - len(row)) + [*row[1:], IGNORED] for row in rows]
    return torch.tensor(padded, device=device)
