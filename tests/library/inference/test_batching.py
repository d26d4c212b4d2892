"""What rows begin with is read once, and every row goes on as if it had been read alone."""

import pytest
import torch
from tiny_models import FAMILIES, SHAPE
from transformers import PreTrainedModel

from slimtune.inference.batching import before_needed, left_padded, read_beginning
from slimtune.inference.decoding import Decoding
from slimtune.inference.generation import generate_batch
from slimtune.inference.token_losses import batch_losses

BEGINNING = [3 + 11 * n % 50 for n in range(20)]
ROWS = [[*BEGINNING, *(5 + (n * k) % 50 for k in range(1, 3 + n))] for n in range(1, 8)]
KINDS = {
    **{name: (name, {}) for name in FAMILIES},
    "mistral, window of 40": ("mistral", {"sliding_window": 40}),
}


@pytest.fixture(params=KINDS)
def model(request) -> PreTrainedModel:
    family, changes = KINDS[request.param]
    return made(family, **changes)


def made(family: str, **changes: object) -> PreTrainedModel:
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(1)
    return model_class(config_class(**SHAPE | extra | changes)).eval()


@torch.no_grad()
def test_logits_after_a_beginning_read_once_are_those_of_each_row_alone(model) -> None:
    shared, cache = read_beginning(model, ROWS, [len(row) - 1 for row in ROWS])
    assert shared == len(BEGINNING)
    ids, mask, positions = left_padded(ROWS, model.device, shared)
    assert ids.shape[1] == max(map(len, ROWS)) - shared and mask.shape[1] == max(map(len, ROWS))
    batch = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits[:, -1]
    alone = [model(torch.tensor([row])).logits[0, -1] for row in ROWS]
    torch.testing.assert_close(batch, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_answers_and_losses_are_those_of_each_row_alone(model) -> None:
    read: list[int] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    labels = [[-100] * (len(row) - 2) + row[-2:] for row in ROWS]
    examples = [{"input_ids": a, "labels": b} for a, b in zip(ROWS, labels, strict=True)]
    together = batch_losses(model, examples)
    assert sum(read) < len(ROWS) * len(BEGINNING)
    for one, example in zip(together, examples, strict=True):
        (alone,) = batch_losses(model, [example])
        assert one.nats == pytest.approx(alone.nats, abs=1e-4)
    answers = generate_batch(model, _Words(), ROWS, Decoding(8), ends=[-1])
    for row, answer in zip(ROWS, answers, strict=True):
        (alone,) = generate_batch(model, _Words(), [row], Decoding(8), ends=[-1])
        assert answer.ids == alone.ids


class _Words:
    eos_token_id = 2

    def decode(self, ids, **_) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize("window", [8, 24, 32])
def test_rows_beyond_a_sliding_window_are_read_whole(window: int) -> None:
    """Blanks amid a row would count for the window."""
    model = made("mistral", sliding_window=window)
    assert read_beginning(model, ROWS, [20] * len(ROWS), new=8) == (0, None)
    answers = generate_batch(model, _Words(), ROWS, Decoding(8), ends=[-1])
    for row, answer in zip(ROWS, answers, strict=True):
        output = model.generate(torch.tensor([row]), max_new_tokens=8, eos_token_id=None)
        assert answer.ids == output[0, len(row) :].tolist()


def test_never_the_token_whose_logits_are_needed(model) -> None:
    assert before_needed([-100, -100, 7, 7]) == 1
    assert before_needed([7, -100, -100, 7]) == 2  # nothing predicts the first token
    assert before_needed([-100] * 4) == 3
    assert read_beginning(model, [ROWS[0]] * 9, [12] * 9)[0] == 12
    assert read_beginning(model, ROWS, [7, *[30] * 6]) == (0, None)


def test_little_in_common_is_not_read_apart(model) -> None:
    assert read_beginning(model, ROWS[:1], [20]) == (0, None)
    assert read_beginning(model, [[4, *row] for row in ROWS[:1]] + ROWS[1:], [20] * 7) == (0, None)
    assert read_beginning(model, ROWS[:3], [20] * 3) == (0, None)  # 40 tokens saved
