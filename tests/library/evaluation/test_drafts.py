"""A reference that the model would say itself need not be decoded: scoring has shown the answer."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest

from slimtune import prompts
from slimtune.config import Config, GenerationSection, Training
from slimtune.evaluation import drafts
from slimtune.evaluation.comparison import compare
from slimtune.inference import generation
from slimtune.inference.answers import AnswerLoss, Generation, Outcome, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.engines import LlamaCppEngine, TransformersEngine
from slimtune.inference.questions import Candidate
from slimtune.prompts import IGNORED

END, LONG = 2, Decoding(max_new_tokens=4)


@dataclass
class Ends:
    """An engine, as far as drafts ask for one."""

    def ends(self) -> frozenset[int]:
        return frozenset({END})

    def text(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def row(prompt: list[int], answer: list[int]) -> dict:
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def told(prompt: list[int], example: dict | None, decoding: Decoding = LONG, lead: float = 9.0):
    return drafts.told(Ends(), [prompt], [example], [AnswerLoss(0.1, 3, 3, margin=lead)], decoding)


def test_a_reference_that_leads_everywhere_is_the_answer() -> None:
    whole = row([1, 5, 6], [7, 8, END])
    assert told([1, 5, 6], whole) == {0: Generation("7 8", [7, 8], True)}
    after_the_end = row([1, 5, 6], [7, END, 9])  # as ChatML writes a line end after it
    assert told([1, 5, 6], after_the_end) == {0: Generation("7", [7], True)}


@pytest.mark.parametrize(
    "told_of",
    [
        pytest.param({"lead": drafts.LEAD / 2}, id="a first choice by a hair"),
        pytest.param({"lead": 0.0}, id="another first choice"),
        pytest.param({"decoding": replace(LONG, temperature=0.7)}, id="drawn"),
        pytest.param({"decoding": replace(LONG, repeat_penalty=1.1)}, id="penalised"),
        pytest.param({"decoding": Decoding(max_new_tokens=2)}, id="cut before its end"),
        pytest.param({"example": None}, id="too long to be scored"),
        pytest.param({"example": row([1, 5, 6], [7, 8])}, id="no end"),
        pytest.param({"prompt": [1, 6]}, id="a prompt that lost its start"),
        pytest.param(
            {"example": row([1, 5, 6], [7, 8, END]) | {"labels": [IGNORED] * 5 + [END]}},
            id="only a part is scored",
        ),
    ],
)
def test_all_others_are_answered(told_of: dict) -> None:
    usual = {"prompt": [1, 5, 6], "example": row([1, 5, 6], [7, 8, END])}
    assert told(**usual | told_of) == {}


def test_the_margin_of_a_row_is_its_least() -> None:
    losses = TokenLosses([0.1, 0.2], [True, True], margins=[3.0, 1.5])
    assert losses.total.margin == 1.5 and TokenLosses([], []).total.margin == 0.0


@pytest.fixture(scope="module", autouse=True)
def timed_once() -> Iterator[None]:
    """A speed is the median of fifteen runs, of which none is looked at here."""
    with patch.object(generation, "SPEED_RUNS", 1):
        yield


@pytest.mark.parametrize("engine", [TransformersEngine, LlamaCppEngine])
def test_scoring_tells_what_decoding_finds(engine, merged, gguf, rows, monkeypatch) -> None:
    """Of rows that a model has learned by heart; and those are not decoded again."""
    candidate = Candidate("merged", str(merged))
    if engine is LlamaCppEngine:
        candidate = Candidate("gguf", str(gguf), tokenizer=str(merged))
    asked, usual = [], engine.generate

    def watched(self, prompts, *others):
        asked.append(len(prompts))
        return usual(self, prompts, *others)

    monkeypatch.setattr(engine, "generate", watched)
    outcomes = []
    for lead in (math.inf, 0.01):
        monkeypatch.setattr(drafts, "LEAD", lead)
        outcomes.append(outcome(candidate, rows))
    decoded, drafted = outcomes
    assert drafted.generations == decoded.generations
    assert asked[0] == len(decoded.generations) > asked[1] + 3
    stopped = [one.stopped and loss.hits == loss.tokens for one, loss in _both(decoded)]
    assert asked[0] - asked[1] == sum(stopped)


def _both(found: Outcome) -> Iterator[tuple[Generation, AnswerLoss]]:
    return zip(found.generations, found.losses, strict=True)


def outcome(candidate: Candidate, rows: Path) -> Outcome:
    with (rows / "train_train.jsonl").open(encoding="utf-8") as lines:
        learned = list(map(json.loads, islice(lines, 24)))
    config = Config(
        training=Training(max_length=128), generation=GenerationSection(max_new_tokens=12)
    )
    template = prompts.template("llama2")
    return compare([candidate], learned, template, config, isolated=False).outcomes[0]
