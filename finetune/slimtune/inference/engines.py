"""One face for a transformers model and a GGUF in llama.cpp: answer, score, stream, time.

A GGUF has three layers: `LlamaContext` computes, in a process that llama.cpp may abort; `LlamaCpp`
is our end of the pipe to that process; `LlamaCppEngine` adds a tokenizer: of the model that the
file was made from, so that prompts, answers and losses are those of a transformers model, or the
file's own where others made it.
"""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from slimtune.console import tenth_done
from slimtune.inference import generation
from slimtune.inference.answers import ANSWERED, SCORED, AnswerLoss, Generation, Speed, TokenLosses
from slimtune.inference.batching import SHORTEST_SHARED, shared_beginning, unfinished
from slimtune.inference.decoding import Decoding
from slimtune.inference.distributions import Distributions
from slimtune.inference.gguf_tokenizer import GgufTokenizer
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.questions import TOKEN_BUDGET, Candidate
from slimtune.inference.token_losses import token_losses
from slimtune.inference.top_choices import Plans
from slimtune.models import loading, tokenizers
from slimtune.models.compute import Compute, ComputeSettings
from slimtune.models.folders import local_folder
from slimtune.models.gguf_header import read_gguf
from slimtune.prompts import IGNORED, Encoded

_log = logging.getLogger(__name__)

Rows = Collection[int]
PromptTokenizer = PreTrainedTokenizerFast | GgufTokenizer

_SPEED_TOKENS = 32
# Types whose products are the same for one prompt and for many. Those of K-quants are not: of
# 12 answers of SmolLM2 in Q4_K_M 6 were others among 8 prompts than alone, as a server gives them.
_SAME_SIDE_BY_SIDE = {"F32", "F16", "BF16", "Q8_0"}
_LARGE = 10**9  # bytes of a GGUF from which many caches side by side would fill a laptop


class Engine(Protocol):
    """A loaded model with its tokenizer. Prompts are token ids; a row's number is its place.

    `generate` and `losses` give (row, result) as they are found; rows that are `known` may be left
    out, and the figures of the others do not depend on it: what is drawn for a row comes from
    `decoding.for_row(row)`. `stream` draws from the decoding's own seed. `losses` keeps the
    predictions of rows, all or the likeliest, or compares them with an original's, as
    `distributions` says.
    """

    tokenizer: PromptTokenizer
    process: int  # the id of the one that holds the model
    context: int  # the longest conversation it can follow, in tokens

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, known: Rows = frozenset()
    ) -> Iterator[tuple[int, Generation]]: ...

    def losses(
        self,
        examples: Sequence[Encoded],
        known: Rows = frozenset(),
        distributions: Plans | None = None,
    ) -> Iterator[tuple[int, AnswerLoss]]: ...

    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, as `generate` gives it."""
        ...

    def stream(self, prompt: list[int], decoding: Decoding) -> Iterator[str]: ...

    def speed(self, prompt: list[int]) -> Speed: ...

    def close(self) -> None: ...


class TransformersEngine:
    """A model folder or Hub id, with or without an adapter."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        token_budget: int = generation._TOKEN_BUDGET,
    ) -> None:
        self.model, self.tokenizer, self.token_budget = model, tokenizer, token_budget
        self.process = os.getpid()
        self.context = model.config.max_position_embeddings

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, known: Rows = frozenset()
    ) -> Iterator[tuple[int, Generation]]:
        return generation.generate(
            self.model,
            self.tokenizer,
            prompts,
            decoding,
            token_budget=self.token_budget,
            known=known,
        )

    def losses(
        self,
        examples: Sequence[Encoded],
        known: Rows = frozenset(),
        distributions: Plans | None = None,
    ) -> Iterator[tuple[int, AnswerLoss]]:
        found = token_losses(
            self.model,
            examples,
            token_budget=self.token_budget,
            known=known,
            distributions=distributions,
        )
        return ((row, losses.total) for row, losses in found)

    def ends(self) -> frozenset[int]:
        return frozenset(generation.end_tokens(self.model, self.tokenizer))

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def stream(self, prompt: list[int], decoding: Decoding) -> Iterator[str]:
        return generation.stream(self.model, self.tokenizer, prompt, decoding)

    def speed(self, prompt: list[int]) -> Speed:
        return generation.speed(self.model, prompt, _SPEED_TOKENS)

    def close(self) -> None:
        """Nothing to close: memory goes with the object, or with the process that held it."""


class LlamaCppEngine:
    """A GGUF file in llama.cpp; `tokenizer` is that of the model it was made from, or its own.

    `exact` says that its types give a token the same figures in every batch: else prompts to answer
    are read whole, as a server does that keeps nothing of the one before.
    """

    def __init__(
        self, model: LlamaCpp, tokenizer: PromptTokenizer, slots: int, exact: bool
    ) -> None:
        self.model, self.tokenizer, self.slots, self.exact = model, tokenizer, slots, exact
        self.process, self.context = model.process, model.context

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, known: Rows = frozenset()
    ) -> Iterator[tuple[int, Generation]]:
        # Rounds of a few prompts a slot: what runs side by side is the same when a run is resumed.
        most = [len(prompt) - 1 for prompt in prompts]
        shared = _read_once(prompts, most) if self.exact else 0
        for rows in self._rounds(prompts, 4 * self.slots, known, ANSWERED):
            asked = [prompts[row] for row in rows]
            for place, answer in self.model.answers(asked, decoding, rows, shared):
                yield rows[place], self._as_transformers_writes(answer)

    def _rounds(
        self, sequences: Sequence[Sequence[int]], size: int, known: Rows, done_is: str
    ) -> Iterator[list[int]]:
        rows = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
        rounds = [rows[start : start + size] for start in range(0, len(rows), size)]
        missing = unfinished(rounds, known)
        done = len(rows) - sum(map(len, missing))
        for batch in missing:
            yield batch
            before, done = done, done + len(batch)
            if tenth_done(before, done, len(rows)):
                _log.info("%d of %d %s", done, len(rows), done_is)

    def _as_transformers_writes(self, answer: Generation) -> Generation:
        """llama.cpp writes broken UTF-8 otherwise than transformers does."""
        if isinstance(self.tokenizer, GgufTokenizer):
            return answer
        return replace(answer, text=self.text(answer.ids))

    def ends(self) -> frozenset[int]:
        return frozenset(self.model.ends())

    def text(self, ids: Sequence[int]) -> str:
        if isinstance(self.tokenizer, GgufTokenizer):
            return self.model.texts(ids)[-1].strip() if ids else ""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def losses(
        self,
        examples: Sequence[Encoded],
        known: Rows = frozenset(),
        distributions: Plans | None = None,
    ) -> Iterator[tuple[int, AnswerLoss]]:
        listening = distributions or Distributions(frozenset())
        starts = [_first_label(example["labels"]) for example in examples]
        ids = [example["input_ids"] for example in examples]
        shared = _read_once(ids, [start - 1 for start in starts])
        for rows in self._rounds(ids, self.slots, known, SCORED):
            pairs = [(ids[row][: starts[row]], ids[row][starts[row] :]) for row in rows]
            places = [_supervised(examples[row]["labels"][starts[row] :]) for row in rows]
            plans = list(map(listening.row, rows, places))
            for place, losses in self.model.losses(pairs, plans, shared):
                yield rows[place], _at(places[place], losses).total

    def stream(self, prompt: list[int], decoding: Decoding) -> Iterator[str]:
        return self.model.stream(prompt, decoding)

    def speed(self, prompt: list[int]) -> Speed:
        return self.model.speed(prompt, _SPEED_TOKENS)

    def close(self) -> None:
        self.model.close()


def open_engine(
    candidate: Candidate,
    numbers: ComputeSettings,
    context: int,
    token_budget: int = TOKEN_BUDGET,
) -> Engine:
    """Loads a candidate; `context` is the longest prompt and answer together, in tokens.

    `numbers` are the settings that say where a folder is computed, and in what numbers; llama.cpp
    makes a choice of its own.

    Raises what loading raises: InputError, ResourceError.
    """
    if candidate.kind == "gguf":
        return _open_gguf(candidate, context + _SPEED_TOKENS + 1, token_budget)
    adapter = Path(candidate.adapter) if candidate.adapter else None
    model = loading.load_model(candidate.reference, Compute.of(numbers), adapter=adapter)
    tokenizer = tokenizers.load_tokenizer(local_folder(candidate.reference))
    return TransformersEngine(model, tokenizer, token_budget)


def _open_gguf(candidate: Candidate, room: int, token_budget: int) -> LlamaCppEngine:
    file = Path(candidate.reference)
    header = read_gguf(file)  # what does not add up is told here: llama.cpp might abort
    tokenizer = tokenizers.load_tokenizer(candidate.tokenizer) if candidate.tokenizer else None
    exact = {tensor.kind.name for tensor in header.tensors.values()} <= _SAME_SIDE_BY_SIDE
    most = 1 if not exact else 4 if file.stat().st_size > _LARGE else 16
    slots = max(min(most, token_budget // room), 1)
    adapter = Path(candidate.adapter) if candidate.adapter else None
    model = LlamaCpp(file, adapter=adapter, context=room, slots=slots)
    return LlamaCppEngine(model, tokenizer or GgufTokenizer(model, header), slots, exact)


def _read_once(rows: Sequence[Sequence[int]], most: Sequence[int]) -> int:
    """How many tokens of all rows are read once for all of them."""
    shared = shared_beginning(rows, most) if len(rows) > 1 else 0
    return shared if shared >= SHORTEST_SHARED else 0


def _first_label(labels: Sequence[int]) -> int:
    """Where the first supervised token is; their number if there is none."""
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def _supervised(labels: Sequence[int]) -> list[int]:
    """The places of the supervised tokens."""
    return [place for place, label in enumerate(labels) if label != IGNORED]


def _at(places: Sequence[int], losses: TokenLosses) -> TokenLosses:
    """Without the tokens between two answers, which llama.cpp scores as well."""
    nats = [losses.nats[place] for place in places]
    hits = [losses.hits[place] for place in places]
    margins = [losses.margins[place] for place in places]
    return replace(losses, nats=nats, hits=hits, margins=margins)
