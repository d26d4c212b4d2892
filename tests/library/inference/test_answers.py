"""One record of an answer, whoever computed it: margins, ends, losses, and what is kept of it."""

import pytest
import torch

from slimtune.inference.answers import AnswerLoss, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.generation import generate_batch
from slimtune.inference.kept_answers import Predictions
from slimtune.inference.questions import Question
from slimtune.inference.token_losses import batch_losses


def test_margins_are_those_of_the_raw_logits_the_end_token_included(model, tokenizer, prompts):
    """Against one whole forward pass over prompt and answer."""
    for answer in generate_batch(model, tokenizer, prompts[:6], Decoding(12)):
        assert answer.margins is None
    answers = generate_batch(model, tokenizer, prompts[:6], Decoding(12), margins=True)
    for prompt, answer in zip(prompts, answers, strict=False):
        assert len(answer.margins) == answer.tokens + answer.stopped
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 :]
        first, second = logits.topk(2).values.unbind(-1)
        wanted = (first - second).tolist()[: len(answer.margins)]
        assert answer.margins == pytest.approx(wanted, abs=1e-4)


def test_the_ids_that_end_an_answer_can_be_given(model, tokenizer, prompts):
    (free,) = generate_batch(model, tokenizer, prompts[:1], Decoding(8), ends=())
    assert free.tokens == 8 and not free.stopped
    third = free.ids[2]
    (ended,) = generate_batch(model, tokenizer, prompts[:1], Decoding(8), ends=[third])
    assert ended.ids == free.ids[: free.ids.index(third)] and ended.stopped


def test_losses_of_tokens_add_up_to_those_of_the_answer(model, prompts):
    labels = [[-100] * 2 + row[2:] for row in prompts[:5]]
    rows = zip(prompts[:5], labels, strict=True)
    examples = [{"input_ids": ids, "labels": wanted} for ids, wanted in rows]
    for example, losses in zip(examples, batch_losses(model, examples), strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        ids = example["input_ids"]
        wanted = [-logs[place - 1, ids[place]].item() for place in range(2, len(ids))]
        assert losses.nats == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert losses.total.tokens == len(wanted)
    assert TokenLosses([], []).total == AnswerLoss(0.0, 0, 0)


def test_answers_kept_in_another_shape_are_asked_for_again(tmp_path, monkeypatch):
    from slimtune.inference import kept_answers

    questions = [Question("r", ({"role": "user", "content": "?"},), ("!",))]
    file = tmp_path / "kept.jsonl"
    asked = []

    def find(known):
        asked.append(known)
        yield 0, AnswerLoss(1.0, 2, 1)

    Predictions(file, questions).complete(AnswerLoss, find)
    Predictions(file, questions).complete(AnswerLoss, find)
    assert asked == [set(), {0}]
    real = kept_answers.fields
    monkeypatch.setattr(kept_answers, "fields", lambda kind: real(kind)[:-1])
    Predictions(file, questions).complete(AnswerLoss, find)
    assert asked[-1] == set()
