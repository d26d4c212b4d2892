"""Decoding with transformers: many prompts in batches, or one as a stream, the same answers.

Greedy unless the `Decoding` says otherwise; the model's own sampling settings take no part.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from statistics import median

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerFast

from slimtune.inference.answers import ANSWERED, Generation, Speed
from slimtune.inference.batching import left_padded, read_beginning, run_batched
from slimtune.inference.decoding import Decoding
from slimtune.inference.sampling import Chooser

_TOKEN_BUDGET = 8192
CACHE_BYTES = 2**30
SPEED_RUNS = 15
_ENOUGH = 1.0  # seconds


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    token_budget: int = _TOKEN_BUDGET,
    known: Collection[int] = frozenset(),
) -> Iterator[tuple[int, Generation]]:
    """(row, answer) for each prompt (token ids, BOS included), batch by batch.

    Batches hold at most `token_budget` tokens of prompt and answer together, fewer where their
    cache would take more than 1 GB, and are halved when memory runs out; rows that are `known` are
    left out as `run_batched` says. Raises ResourceError where even one prompt does not fit.
    """

    def answer(rows: list[int]) -> list[Generation]:
        batch = [prompts[row] for row in rows]
        return generate_batch(model, tokenizer, batch, decoding, rows=rows)

    lengths = [len(prompt) + decoding.max_new_tokens for prompt in prompts]
    return run_batched(lengths, min(token_budget, _fitting_budget(model)), answer, known, ANSWERED)


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    rows: Sequence[int] | None = None,
    ends: Collection[int] | None = None,
    margins: bool = False,
) -> list[Generation]:
    """The answers to prompts that are decoded side by side.

    `rows` are their numbers among all, from which they draw (theirs among these, by default);
    `ends` the ids that end an answer, `end_tokens` by default; `margins` asks for those of
    `Generation`.
    """
    ends = end_tokens(model, tokenizer) if ends is None else ends
    seeded = [decoding.for_row(row) for row in rows or range(len(prompts))]
    answers = _answers(model, prompts, seeded, ends, margins)
    return [_finished(tokenizer, ids, gaps, ends) for ids, gaps in answers]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    decoding: Decoding,
) -> Iterator[str]:
    """The answer to one prompt, piece by piece; the pieces joined are the whole text.

    A piece is held back while it may change: half a UTF-8 character decodes to U+FFFD.
    """
    ids: list[int] = []
    shown = ""
    ends = end_tokens(model, tokenizer)
    for _, (token,), _ in _choices(model, [prompt], [decoding], ends):
        if token in ends:
            break
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids, skip_special_tokens=True)
    yield rest[len(shown) :]


def speed(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> Speed:
    """Tokens per second of one sequence: reading `prompt`, then generating on past any EOS.

    Medians over up to SPEED_RUNS runs, fewer where one takes long: 32 tokens of a small model are
    over in 25 ms, and whatever else the machine does in them would count.
    """
    found: list[Speed] = []
    started = time.perf_counter()
    while len(found) < SPEED_RUNS and time.perf_counter() - started < _ENOUGH:
        found.append(_speed_once(model, prompt, new_tokens))
    reading, writing = zip(*found, strict=True)
    return Speed(median(reading), median(writing))


def _speed_once(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> Speed:
    times = [time.perf_counter()]
    for _ in _choices(model, [prompt], [Decoding(new_tokens + 1)], ends=()):
        times.append(time.perf_counter())
    return Speed(len(prompt) / (times[1] - times[0]), new_tokens / (times[-1] - times[1]))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The ids that end an answer: the tokenizer's EOS and those of generation_config."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {token for token in [tokenizer.eos_token_id, *several] if token is not None}


def _fitting_budget(model: PreTrainedModel) -> int:
    """Tokens whose keys and values in all layers take at most CACHE_BYTES (GQA needs less)."""
    values = 2 * model.config.num_hidden_layers * model.config.hidden_size
    return max(CACHE_BYTES // (values * model.dtype.itemsize), 1)


def _answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[Decoding],
    ends: Collection[int],
    margins: bool,
) -> list[tuple[list[int], list[float]]]:
    """(ids, margins or nothing) of each answer of one batch, the closing end token included."""
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    for rows, tokens, logits in _choices(model, prompts, decodings, ends):
        for row, token in zip(rows, tokens, strict=True):
            answers[row][0].append(token)
        if margins:
            first, second = logits.topk(2).values.unbind(-1)
            for row, margin in zip(rows, (first - second).tolist(), strict=True):
                answers[row][1].append(margin)
    return answers


@torch.inference_mode()
def _choices(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[Decoding],
    ends: Collection[int],
) -> Iterator[tuple[list[int], list[int], torch.Tensor]]:
    """Step by step: the rows that go on, the token that each chooses, their logits (rows, ids).

    Each row has its own seed of one decoding. A row whose token is one of `ends` is left out from
    the next step on.
    """
    active = list(range(len(prompts)))
    choosers = None if decodings[0].plain else [*map(Chooser, decodings, prompts)]
    own = [len(prompt) - 1 for prompt in prompts]
    shared, cache = read_beginning(model, prompts, own, decodings[0].max_new_tokens)
    ids, mask, positions = left_padded(prompts, model.device, shared)
    for _ in range(decodings[0].max_new_tokens):
        logits, cache = _step(model, ids, mask, positions, cache)
        chosen = _chosen(logits, active, choosers)
        tokens = chosen.tolist()
        yield active, tokens, logits
        going = [place for place, token in enumerate(tokens) if token not in ends]
        if not going:
            return
        # A finished row is dropped from the batch: it would cost as much as one that goes on.
        if len(going) < len(active):
            keep = torch.tensor(going, device=model.device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            active = [active[place] for place in going]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _chosen(
    logits: torch.Tensor, rows: Sequence[int], choosers: Sequence[Chooser] | None
) -> torch.Tensor:
    """The next token of each row (rows,): the likeliest, or what the row's chooser takes."""
    if choosers is None:
        return logits.argmax(-1)
    wide = logits.float().cpu().numpy()
    tokens = [choosers[row].choose(own) for row, own in zip(rows, wide, strict=True)]
    return torch.tensor(tokens, device=logits.device)


def _step(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache | None,
) -> tuple[torch.Tensor, Cache]:
    """Logits of each row's next token (rows, vocabulary), and the cache with all tokens so far."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1], output.past_key_values


def _finished(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], margins: list[float], ends: Collection[int]
) -> Generation:
    stopped = bool(ids) and ids[-1] in ends
    kept = ids[:-1] if stopped else ids
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Generation(text.strip(), kept, stopped, margins or None)
