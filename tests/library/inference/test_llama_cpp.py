"""A GGUF in llama.cpp: what all rows begin with is read once, and nothing else changes."""

import pytest

from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import LlamaCppEngine
from slimtune.inference.llama_context import LlamaContext
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers
from slimtune.prompts import IGNORED

BEGINNING = [1, *range(5, 25)]
PROMPTS = [[*BEGINNING, 30 + n, 40 + n] for n in range(5)]
PAIRS = [(prompt, [50 + n, 2]) for n, prompt in enumerate(PROMPTS)]
GREEDY = Decoding(4)


@pytest.fixture(scope="module")
def context(gguf) -> LlamaContext:
    return LlamaContext(gguf, 64, 2, 1)


@pytest.fixture
def read(context, monkeypatch) -> list[int]:
    """How many tokens each pass read, from here on."""
    passes: list[int] = []
    decode = LlamaContext._decode
    spy = lambda own, entries: (passes.append(len(entries)), decode(own, entries))  # noqa: E731
    monkeypatch.setattr(LlamaContext, "_decode", spy)
    return passes


def test_a_shared_beginning_is_read_once_a_slot(context, read) -> None:
    whole = dict(context.losses(PAIRS))
    alone = sum(read)
    read.clear()
    shared = len(BEGINNING)
    again = dict(context.losses(PAIRS, (), shared))
    assert sum(read) == alone - (len(PAIRS) - context.slots) * shared
    assert [one.nats for one in again.values()] == [
        pytest.approx(one.nats, abs=1e-4) for one in whole.values()
    ]
    read.clear()
    context_answers = dict(context.generate(PROMPTS, GREEDY, range(5), shared))
    assert read[0] == 2 * 2, "both slots have kept the beginning since the losses"
    whole_answers = dict(context.generate(PROMPTS, GREEDY, range(5)))
    assert {n: one.ids for n, one in context_answers.items()} == {
        n: one.ids for n, one in whole_answers.items()
    }


def test_another_beginning_takes_its_place(context) -> None:
    other = [[1, *range(60, 80), 30 + n] for n in range(3)]
    whole = dict(context.generate(other, GREEDY, range(3)))
    list(context.generate(PROMPTS, GREEDY, range(5), len(BEGINNING)))
    after = dict(context.generate(other, GREEDY, range(3), 21))
    assert {n: one.ids for n, one in after.items()} == {n: one.ids for n, one in whole.items()}
    context.speed(PROMPTS[0], 3)
    list(context.stream(PROMPTS[1], GREEDY))
    after = dict(context.generate(other, GREEDY, range(3), 21))
    assert {n: one.ids for n, one in after.items()} == {n: one.ids for n, one in whole.items()}


def test_a_row_does_not_depend_on_the_rows_before_it(gguf, merged) -> None:
    tokenizer = tokenizers.load_tokenizer(merged)
    rows = [
        {"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]}
        for prompt, answer in PAIRS
    ]
    found = []
    for known in (frozenset(), frozenset(range(4))):
        with LlamaCpp(gguf, context=64, slots=1, threads=1) as model:
            engine = LlamaCppEngine(model, tokenizer, 1, exact=True)
            answers = dict(engine.generate(PROMPTS, GREEDY, known))
            found.append(
                ({n: one.ids for n, one in answers.items()}, dict(engine.losses(rows, known)))
            )
    (answers, losses), (later, scored) = found
    assert len(scored) == 1 and len(later) < len(answers)  # asked in rounds of four
    assert all(losses[n] == scored[n] for n in scored)
    assert all(answers[n] == later[n] for n in later)
