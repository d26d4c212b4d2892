"""Batched generation says what one-by-one generation says, in whatever batches memory allows."""

import pytest
import torch

from slimtune.errors import ResourceError
from slimtune.inference import generation
from slimtune.inference.answers import Generation, in_order
from slimtune.inference.batching import by_length, run_batched
from slimtune.inference.decoding import Decoding
from slimtune.inference.generation import stream


def generate(*arguments, **settings) -> list[Generation]:
    return in_order(generation.generate(*arguments, **settings))


@pytest.fixture(scope="module")
def one_by_one(model, prompts):
    """transformers' own greedy generate, one prompt at a time, without batch or padding."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def test_batched_equals_one_by_one(model, tokenizer, prompts, one_by_one):
    answers = generate(model, tokenizer, prompts, Decoding(20), token_budget=300)
    for answer, ids in zip(answers, one_by_one, strict=True):
        stopped = ids[-1] == 2
        kept = ids[:-1] if stopped else ids
        assert answer.text == tokenizer.decode(kept, skip_special_tokens=True).strip()
        assert (answer.tokens, answer.stopped) == (len(kept), stopped)


def test_some_answers_stop_early_and_some_do_not(one_by_one):
    """Otherwise the test above would not see a row leave its batch."""
    stopped = [ids[-1] == 2 for ids in one_by_one]
    assert any(stopped) and not all(stopped)


def test_stream_joins_to_the_batched_answer(model, tokenizer, prompts):
    answers = generate(model, tokenizer, prompts[:8], Decoding(12))
    for prompt, answer in zip(prompts[:8], answers, strict=True):
        pieces = list(stream(model, tokenizer, prompt, Decoding(12)))
        assert "".join(pieces).strip() == answer.text
        assert len(pieces) > 1 or answer.tokens < 2


def test_progress_says_what_is_counted(model, tokenizer, prompts, caplog):
    with caplog.at_level("INFO"):
        generate(model, tokenizer, prompts[:4], Decoding(2))
    assert caplog.messages[-1] == "4 of 4 prompts answered"


def test_batches_are_sorted_and_within_the_budget():
    lengths = [5, 1, 9, 3, 3, 20, 2]
    batches = by_length(lengths, 12)
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert batches[0] == [5]  # beyond the budget, so alone
    for batch in batches[1:]:
        assert max(lengths[row] for row in batch) * len(batch) <= 12


def test_out_of_memory_halves_the_batch_and_keeps_the_order():
    sizes = []

    def run(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [row * 10 for row in rows]

    assert in_order(run_batched([1] * 20, 10, run)) == [row * 10 for row in range(20)]
    assert max(sizes[-7:]) <= 3


def test_out_of_memory_with_one_row_names_the_cure():
    def run(rows: list[int]) -> list[int]:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB")

    with pytest.raises(ResourceError) as error:
        list(run_batched([1, 1], 10, run))
    assert "smaller" in error.value.cure


def test_known_rows_leave_the_other_batches_as_they_were():
    """A resumed run must compute what is missing in the same company: bf16 is sensitive to it."""
    asked = []

    def run(rows: list[int]) -> list[int]:
        asked.append(rows)
        return rows

    everything = by_length([1] * 20, 5)
    known = {*everything[0], *everything[2], everything[3][0]}
    found = dict(run_batched([1] * 20, 5, run, known))
    assert asked == [everything[1], everything[3]]
    assert sorted(found) == sorted(everything[1] + everything[3])


def test_another_error_is_not_taken_for_out_of_memory():
    def run(rows: list[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(run_batched([1, 1], 10, run))


def test_batches_shrink_until_the_cache_fits(model, tokenizer, prompts, monkeypatch):
    """2 layers x (key + value) x 32 values x 4 bytes: 512 bytes a token."""
    widths = []
    hook = model.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape[0]))
    monkeypatch.setattr(generation, "CACHE_BYTES", 512 * 100)
    few = generate(model, tokenizer, prompts, Decoding(20))
    hook.remove()
    assert max(widths) <= 100 // 22
    monkeypatch.undo()
    assert few == generate(model, tokenizer, prompts, Decoding(20))
