"""Answer losses equal the plain definition: one row, full logits, log_softmax."""

import math
import random

import pytest
import torch

from slimtune.evaluation import perplexity as measured
from slimtune.evaluation.answers import AnswerLoss
from slimtune.evaluation.metrics import perplexity
from slimtune.evaluation.perplexity import answer_losses


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


def plain(model, example) -> tuple[float, int]:
    with torch.no_grad():
        logits = model(torch.tensor([example["input_ids"]])).logits[0].double()
    chosen = [(t - 1, label) for t, label in enumerate(example["labels"]) if label != -100]
    nats = -sum(torch.log_softmax(logits[t], -1)[label].item() for t, label in chosen)
    return nats, len(chosen)


def test_batched_losses_equal_the_definition(model, examples, monkeypatch):
    monkeypatch.setattr(measured, "TOKEN_BUDGET", 120)
    losses = answer_losses(model, examples)
    for loss, example in zip(losses, examples, strict=True):
        nats, tokens = plain(model, example)
        assert loss.tokens == tokens
        assert loss.nats == pytest.approx(nats, rel=1e-5, abs=1e-6)


def test_logits_start_at_the_first_answer_of_the_batch(model, examples):
    """Prompts must cost no vocabulary-sized memory."""
    widths = []
    hook = model.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    answer_losses(model, [{"input_ids": [1] + [5] * 30, "labels": [-100] * 29 + [5, 5]}])
    hook.remove()
    assert widths == [3]


def test_perplexity_weighs_by_tokens():
    losses = [AnswerLoss(math.log(2) * 9, 9), AnswerLoss(math.log(8), 1)]
    assert perplexity(losses) == pytest.approx(2 ** (12 / 10))


def test_a_hopeless_model_has_a_finite_perplexity():
    assert math.isfinite(perplexity([AnswerLoss(1e6, 1)]))
