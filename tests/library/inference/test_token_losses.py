"""Answer losses equal the plain definition: one row, full logits, log_softmax."""

import random

import pytest
import torch

from slimtune.inference.answers import in_order
from slimtune.inference.token_losses import token_losses


@pytest.fixture(scope="module")
def examples(prompts) -> list[dict[str, list[int]]]:
    """Rows with one or two supervised spans, and one row with none."""
    chance = random.Random(2)
    rows = []
    for prompt in prompts:
        start = chance.randint(1, len(prompt) - 1)
        labels = [-100] * start + prompt[start:]
        if len(prompt) > 8:
            labels[2:4] = prompt[2:4]
        rows.append({"input_ids": prompt, "labels": labels})
    rows[7] = {"input_ids": prompts[7], "labels": [-100] * len(prompts[7])}
    return rows


def plain(model, example) -> tuple[float, int, int]:
    with torch.no_grad():
        logits = model(torch.tensor([example["input_ids"]])).logits[0].double()
    chosen = [(t - 1, label) for t, label in enumerate(example["labels"]) if label != -100]
    nats = -sum(torch.log_softmax(logits[t], -1)[label].item() for t, label in chosen)
    return nats, len(chosen), sum(int(logits[t].argmax()) == label for t, label in chosen)


def test_batched_losses_equal_the_definition(model, examples):
    found = in_order(token_losses(model, examples, token_budget=120))
    losses = [one.total for one in found]
    assert sum(loss.hits for loss in losses) > 0
    for loss, example in zip(losses, examples, strict=True):
        nats, tokens, hits = plain(model, example)
        assert (loss.tokens, loss.hits) == (tokens, hits)
        assert loss.nats == pytest.approx(nats, rel=1e-5, abs=1e-6)


def test_logits_start_at_the_first_answer_of_the_batch(model, examples):
    """Prompts must cost no vocabulary-sized memory."""
    widths = []
    hook = model.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    list(token_losses(model, [{"input_ids": [1] + [5] * 30, "labels": [-100] * 29 + [5, 5]}]))
    hook.remove()
    assert widths == [3]
