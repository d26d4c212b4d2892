"""One face for a transformers model and a GGUF in llama.cpp: answer, score, stream, time."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from slimtune.console import SettingsError
from slimtune.evaluation import generation
from slimtune.evaluation.answers import AnswerLoss, Candidate, Compute, Generation
from slimtune.evaluation.perplexity import answer_losses
from slimtune.models import loading, tokenizers
from slimtune.models.hub import resolve
from slimtune.models.llama_cpp import LlamaCpp, require_gguf
from slimtune.prompts import IGNORED, Encoded

log = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
_SPEED_TOKENS = 32
_LARGE = 10**9  # bytes of a GGUF from which many caches side by side would fill a laptop


class Engine(Protocol):
    """A loaded model with its tokenizer. Prompts are token ids; decoding is greedy."""

    tokenizer: PreTrainedTokenizerFast
    process: int  # the id of the one that holds the model

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Generation]: ...

    def losses(self, examples: Sequence[Encoded]) -> list[AnswerLoss]: ...

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]: ...

    def speed(self, prompt: list[int]) -> tuple[float, float]:
        """Tokens per second of one sequence: reading `prompt`, then generating."""
        ...

    def close(self) -> None: ...


class Transformers:
    """A model folder or Hub id, with or without an adapter."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.process = os.getpid()

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Generation]:
        return generation.generate(
            self.model, self.tokenizer, prompts, max_new_tokens=max_new_tokens
        )

    def losses(self, examples: Sequence[Encoded]) -> list[AnswerLoss]:
        return answer_losses(self.model, examples)

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
        return generation.stream(self.model, self.tokenizer, prompt, max_new_tokens=max_new_tokens)

    def speed(self, prompt: list[int]) -> tuple[float, float]:
        return generation.speed(self.model, prompt, _SPEED_TOKENS)

    def close(self) -> None:
        """Nothing to close: memory goes with the object, or with the process that held it."""


class Gguf:
    """A .gguf file in llama.cpp; `tokenizer` is that of the model it was made from."""

    def __init__(self, model: LlamaCpp, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.process = model.process

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Generation]:
        answers = self.model.generate(prompts, max_new_tokens)
        return [self._finished(answer.ids, answer.stopped_at_eos) for answer in answers]

    def _finished(self, ids: list[int], stopped: bool) -> Generation:
        # Not llama.cpp's own text: it writes broken UTF-8 otherwise than transformers does.
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Generation(text.strip(), len(ids), stopped)

    def losses(self, examples: Sequence[Encoded]) -> list[AnswerLoss]:
        return [self._loss(example["input_ids"], example["labels"]) for example in examples]

    def _loss(self, ids: list[int], labels: list[int]) -> AnswerLoss:
        first = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
        if first == len(ids):
            return AnswerLoss(0.0, 0)
        nats = self.model.nll(ids[:first], ids[first:])
        counted = [
            loss for loss, label in zip(nats, labels[first:], strict=True) if label != IGNORED
        ]
        return AnswerLoss(sum(counted), len(counted))

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
        return self.model.stream(prompt, max_new_tokens)

    def speed(self, prompt: list[int]) -> tuple[float, float]:
        speed = self.model.speed(prompt, _SPEED_TOKENS)
        return speed.prompt, speed.generation

    def close(self) -> None:
        self.model.close()


def open_engine(candidate: Candidate, compute: Compute, context: int) -> Engine:
    """Loads a candidate; `context` is the longest prompt and answer together, in tokens.

    Raises what loading raises (InputError, ResourceError), and SettingsError for a GGUF without
    the folder whose tokenizer encodes its prompts.
    """
    if candidate.kind == "gguf":
        tokenizer = tokenizers.load(_tokenizer_folder(candidate))
        require_gguf(Path(candidate.reference))
        slots = 4 if Path(candidate.reference).stat().st_size > _LARGE else 16
        room = context + _SPEED_TOKENS + 1
        return Gguf(LlamaCpp(candidate.reference, context=room, slots=slots), tokenizer)
    adapter = Path(candidate.adapter) if candidate.adapter else None
    model = loading.load(
        candidate.reference,
        adapter=adapter,
        device=compute.device,
        dtype=compute.dtype,
        quantize=compute.quantize,
    )
    return Transformers(model, tokenizers.load(resolve(candidate.reference)))


def own_template(candidate: Candidate, otherwise: str) -> str:
    """The chat template that lies with the candidate (its adapter first), else `otherwise`."""
    folders = [candidate.adapter, candidate.tokenizer, candidate.reference]
    for folder in folders:
        file = Path(folder or "") / TEMPLATE_FILE
        if folder and file.is_file():
            return file.read_text(encoding="utf-8")
    return otherwise


def _tokenizer_folder(candidate: Candidate) -> str:
    if candidate.tokenizer:
        return candidate.tokenizer
    raise SettingsError(
        f"{candidate.reference}: whose prompts should this GGUF get?",
        "it is compared on the token ids of the model it was made from, and that is not known",
        "name the folder of that model as well",
    )
