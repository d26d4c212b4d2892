"""One GGUF in llama.cpp, in this process: logits, decoding of many prompts side by side.

Use `llama_cpp`, which keeps this in a child process: llama.cpp aborts the process on some files.
Nothing here imports torch, which would cost that child seconds and memory.
"""

import codecs
import ctypes
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from slimtune.errors import InputError, ResourceError
from slimtune.inference.answers import Generation, Speed, TokenLosses
from slimtune.inference.decoding import Decoding
from slimtune.inference.llama_vocabulary import LlamaVocabulary
from slimtune.inference.row_scores import RowScores
from slimtune.inference.sampling import Chooser
from slimtune.inference.top_choices import Plan

Prompt = Sequence[int]
Entry = tuple[int, int, int, bool]  # slot, position, token, whether its logits are wanted


@dataclass
class _Answer:
    """A sequence in one slot of the context: what it must still read, and what it has said."""

    pending: list[int]
    chooser: Chooser
    position: int = 0
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    @classmethod
    def to(cls, prompt: Prompt, decoding: Decoding, read: int = 0) -> Self:
        """To a prompt of which the slot has read so many tokens already."""
        return cls(list(prompt[read:]), Chooser(decoding, prompt), read)


class LlamaContext(LlamaVocabulary):
    """`slots` sequences of `context` tokens each (0: as many as the model knows), f16 cache.

    `adapter` is the GGUF of a LoRA adapter, put on the model at its own scale.
    """

    def __init__(
        self, gguf: Path, context: int, slots: int, threads: int, adapter: Path | None = None
    ) -> None:
        super().__init__(gguf, whole=True)
        self.slots = slots
        self.handle = self._new_context(context, threads)
        if adapter is not None:
            self._put_on(adapter)
        self.context = self.lib.llama_n_ctx_seq(self.handle)
        self.room = self.lib.llama_n_batch(self.handle)
        self.memory = self.lib.llama_get_memory(self.handle)
        self.batch = self.lib.llama_batch_init(self.room, 0, 1)
        self._beginnings: dict[int, Prompt] = {}  # slot -> what its cache keeps between sequences

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, rows: Sequence[int], shared: int = 0
    ) -> Iterator[tuple[int, Generation]]:
        """(prompt's index, answer) in the order they finish; a free slot takes the next prompt.

        `rows` are the prompts' numbers among all, from which they draw. The first `shared` tokens
        are those of every prompt, and read once a slot.
        """
        for prompt in prompts:
            self._require_room(len(prompt))
        waiting = deque(enumerate(prompts))
        running: dict[int, tuple[int, _Answer]] = {}
        while waiting or running:
            for slot in set(range(self.slots)) - running.keys():
                if waiting:
                    index, prompt = waiting.popleft()
                    self._begin(slot, prompt[:shared])
                    own = decoding.for_row(rows[index])
                    running[slot] = (index, _Answer.to(prompt, own, shared))
            for slot, token in self._step({slot: answer for slot, (_, answer) in running.items()}):
                index, answer = running[slot]
                self._advance(answer, token)
                if self._ended(answer, decoding.max_new_tokens):
                    yield index, Generation(_text(answer).strip(), answer.ids, answer.stopped)
                    del running[slot]

    def stream(self, prompt: Prompt, decoding: Decoding) -> Iterator[str]:
        """One answer's text, piece by piece."""
        self._require_room(len(prompt))
        self._begin(0)
        answer, shown, ended = _Answer.to(prompt, decoding), 0, False
        while not ended:
            for _, token in self._step({0: answer}):
                self._advance(answer, token)
                ended = self._ended(answer, decoding.max_new_tokens)
            text = _text(answer) if ended else answer.text
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)

    def losses(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        plans: Sequence[Plan | None] = (),
        shared: int = 0,
    ) -> Iterator[tuple[int, TokenLosses]]:
        """(index, losses of the answer's tokens) of (prompt, answer) pairs, `slots` at a time.

        A pair that has a plan is kept or compared as it says. The first `shared` tokens, fewer than
        any prompt has, are those of every pair, and read once a slot.
        """
        plans = plans or [None] * len(pairs)
        for start in range(0, len(pairs), self.slots):
            side_by_side = slice(start, start + self.slots)
            found = self._losses(pairs[side_by_side], plans[side_by_side], shared)
            yield from enumerate(found, start)

    def _losses(
        self, pairs: Sequence[tuple[Prompt, Prompt]], plans: Sequence[Plan | None], shared: int
    ) -> list[TokenLosses]:
        """Those of at most `slots` pairs, decoded side by side."""
        entries: list[Entry] = []
        targets: list[int] = []
        for slot, (prompt, answer) in enumerate(pairs):
            ids = [*prompt, *answer]
            self._require_room(len(ids) - 1)
            self._begin(slot, ids[:shared])
            for position, token in enumerate(ids[shared:-1], shared):
                entries.append((slot, position, token, position + 1 >= len(prompt)))
            targets += ids[shared + 1 :]
        found = [RowScores(plan) for plan in plans]
        for start in range(0, len(entries), self.room):
            part = entries[start : start + self.room]
            self._decode(part)
            for row, (slot, _, _, wanted) in enumerate(part):
                if wanted:
                    found[slot].add(self._logits(row), targets[start + row])
        return [one.closed() for one in found]

    def margins(self, prompt: Prompt, answer: Prompt, at_once: int = 0) -> list[float]:
        """Nats between first and second choice at each step of an answer, and after its last.

        `at_once` tokens are computed together, 0: all. Of quantised matrices llama.cpp computes
        few tokens otherwise than many, and how far that moves the margins is how exact they are.
        """
        ids = [*prompt, *answer]
        self._require_room(len(ids))
        self._begin(0)
        found: list[float] = []
        size = min(at_once or self.room, self.room)
        for start in range(0, len(ids), size):
            places = range(start, min(start + size, len(ids)))
            part = [(0, place, ids[place], place + 1 >= len(prompt)) for place in places]
            self._decode(part)
            for row, (_, _, _, wanted) in enumerate(part):
                if wanted:
                    second, first = np.partition(self._logits(row), -2)[-2:]
                    found.append(float(first - second))
        return found

    def speed(self, prompt: Prompt, new_tokens: int) -> Speed:
        self._require_room(len(prompt) + new_tokens)
        self._begin(0)
        answer = _Answer.to(prompt, Decoding(new_tokens))
        times = [time.perf_counter()]
        produced = 0
        while produced <= new_tokens:
            for _, token in self._step({0: answer}):
                answer.pending = [token]
                produced += 1
                times.append(time.perf_counter())
        return Speed(len(prompt) / (times[1] - times[0]), new_tokens / (times[-1] - times[1]))

    def _begin(self, slot: int, beginning: Prompt = ()) -> None:
        """Empties a slot up to a beginning, which is read, by itself, unless the slot keeps it.

        By itself, because llama.cpp computes the same token to other last digits among more of
        them: a row must not depend on which rows were asked before it.
        """
        kept = self._beginnings.pop(slot, ())
        if not beginning or kept != beginning or not self._cut(slot, len(beginning)):
            self._cut(slot, 0)
            entries = [(slot, place, token, False) for place, token in enumerate(beginning)]
            for start in range(0, len(entries), self.room):
                self._decode(entries[start : start + self.room])
        self._beginnings[slot] = beginning

    def _cut(self, slot: int, length: int) -> bool:
        """Forgets all of a slot after so many tokens; False where its memory cannot."""
        return self.lib.llama_memory_seq_rm(self.memory, slot, length or -1, -1)

    def _step(self, answers: dict[int, _Answer]) -> list[tuple[int, int]]:
        """Reads all pending tokens that fit a batch; (slot, next token) where none is left."""
        entries: list[Entry] = []
        ready: list[tuple[int, int]] = []
        for slot, answer in answers.items():
            taken = answer.pending[: self.room - len(entries)]
            answer.pending = answer.pending[len(taken) :]
            for offset, token in enumerate(taken):
                last = not answer.pending and offset == len(taken) - 1
                entries.append((slot, answer.position + offset, token, last))
            answer.position += len(taken)
            if taken and not answer.pending:
                ready.append((slot, len(entries) - 1))
        self._decode(entries)
        return [(slot, answers[slot].chooser.choose(self._logits(row))) for slot, row in ready]

    def _advance(self, answer: _Answer, token: int) -> None:
        """Adds the token that was chosen to an answer, or ends it with that."""
        answer.stopped = self.lib.llama_vocab_is_eog(self.vocabulary, token)
        if not answer.stopped:
            answer.ids.append(token)
            answer.text += answer.decoder.decode(self.piece(token))
            answer.pending = [token]

    def _ended(self, answer: _Answer, max_new_tokens: int) -> bool:
        full = answer.position >= self.context or len(answer.ids) >= max_new_tokens
        return answer.stopped or full

    def _decode(self, entries: Sequence[Entry]) -> None:
        batch = self.batch
        batch.n_tokens = len(entries)
        for row, (slot, position, token, logits) in enumerate(entries):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
            batch.seq_id[row][0], batch.logits[row] = slot, logits
        if code := self.lib.llama_decode(self.handle, batch):
            raise ResourceError(
                f"{self.gguf}: llama.cpp could not decode a batch (code {code})",
                self._last_error("no more is known"),
                "try fewer prompts at once or a shorter context",
            )

    def _logits(self, row: int) -> np.ndarray:
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.handle, row), (self.size,))

    def _require_room(self, tokens: int) -> None:
        if tokens > self.context or not tokens:
            raise InputError(
                f"{self.gguf}: a prompt of {tokens} tokens",
                f"the context holds 1 to {self.context} tokens",
                "shorten the prompt or raise the context",
            )

    def _put_on(self, adapter: Path) -> None:
        found = self.lib.llama_adapter_lora_init(self.model, str(adapter).encode())
        one = (ctypes.c_void_p * 1)(found)
        if not found or self.lib.llama_set_adapters_lora(
            self.handle, one, 1, (ctypes.c_float * 1)(1.0)
        ):
            raise InputError(
                f"{adapter}: llama.cpp cannot put this adapter on {self.gguf}",
                self._last_error("it gives no reason"),
                "give the base that the adapter was trained on, or write the adapter again with "
                "convert_to_gguf.py --lora-as adapter",
            )

    def _new_context(self, context: int, threads: int) -> int:
        parameters = self.lib.llama_context_default_params()
        context = context or self.lib.llama_model_n_ctx_train(self.model)
        batch = max(2048, self.slots)
        parameters.head[:] = (context * self.slots, batch, 512, self.slots)
        handle = self.lib.llama_init_from_model(self.model, parameters)
        if not handle:
            raise ResourceError(
                f"{self.gguf}: no room for {self.slots} × {context} tokens of context",
                self._last_error("llama.cpp gives no reason"),
                "use a shorter context or fewer prompts at once",
            )
        self.lib.llama_set_n_threads(handle, threads, threads)
        return handle


def _text(answer: _Answer) -> str:
    """The whole text; half a UTF-8 character at its end becomes U+FFFD."""
    return answer.text + answer.decoder.decode(b"", final=True)
