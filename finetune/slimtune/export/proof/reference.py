"""What the model itself says, in transformers: the truth that its GGUF files are measured by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.export.plan import ModelSource, as_source, load_model
from slimtune.export.quant_types import Precision
from slimtune.models import tokenizers
from slimtune.prompts import IGNORED, ChatMessage


@dataclass(frozen=True)
class ProofRow:
    """A conversation: its prompt as Ollama gets it, training's ids of it, the ids of its answer."""

    text: str
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class ModelAnswer:
    """A greedy answer without its end token, and how likely the scored answer is.

    `margins`: nats between first and second choice of each step, the end included; `scored`: the
    ids whose negative log-likelihoods (nats) are `losses`.
    """

    ids: list[int]
    margins: list[float]
    stopped: bool
    scored: list[int]
    losses: list[float]


@dataclass(frozen=True)
class Truth:
    """Rows, and what the model says to the first of them: to none where memory is short."""

    tokenizer: PreTrainedTokenizerFast
    rows: list[ProofRow]
    said: list[ModelAnswer]
    precision: Precision
    max_new_tokens: int


def truth(
    model: Path | str | ModelSource,
    conversations: Sequence[Sequence[ChatMessage]],
    template: str,
    *,
    compared: int = 4,
    precision: Precision = "float32",
    max_new_tokens: int = 48,
) -> Truth:
    """Rows of all conversations, and the model's words on the first `compared`.

    A last assistant message is the answer whose likelihood counts, else the greedy answer is.
    `compared=0` spares loading the model (4 bytes a parameter, 2 in bfloat16).
    """
    source = as_source(model)
    tokenizer = tokenizers.load_tokenizer(str(source.folder))
    rows = [_row(tokenizer, messages, template) for messages in conversations]
    loaded = load_model(source, precision) if compared else None
    eos = tokenizer.eos_token_id
    said = [refer(loaded, r.prompt, r.answer, eos, max_new_tokens) for r in rows[:compared]]
    return Truth(tokenizer, rows, said, precision, max_new_tokens)


def refer(
    model: PreTrainedModel, prompt: list[int], answer: list[int], eos: int, max_new_tokens: int
) -> ModelAnswer:
    """The greedy answer to a prompt, and the losses of `answer` (empty: of the greedy one)."""
    ids, margins, stopped = greedy(model, prompt, eos, max_new_tokens)
    scored = answer or ids + [eos] * stopped
    return ModelAnswer(ids, margins, stopped, scored, nll(model, prompt, scored))


@torch.inference_mode()
def greedy(
    model: PreTrainedModel, prompt: list[int], eos: int, max_new_tokens: int
) -> tuple[list[int], list[float], bool]:
    """Ids, margins, stopped: argmax of the raw logits; no generation_config takes part."""
    ids, margins = [], []
    step, cache = torch.tensor([prompt]), None
    while len(ids) < max_new_tokens:
        out = model(step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        top = out.logits[0, -1].topk(2)
        margins.append(float(top.values[0] - top.values[1]))
        token = int(top.indices[0])
        if token == eos:
            return ids, margins, True
        ids.append(token)
        step = torch.tensor([[token]])
    return ids, margins, False


@torch.inference_mode()
def nll(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> list[float]:
    """-log p of each answer token given all before it, nats."""
    ids = torch.tensor([*prompt, *answer])
    logits = model(ids[None, :-1]).logits[0, len(prompt) - 1 :].float()
    return torch.nn.functional.cross_entropy(logits, ids[len(prompt) :], reduction="none").tolist()


def _row(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[ChatMessage], template: str
) -> ProofRow:
    prompt = prompts.encode_prompt(tokenizer, messages, template)
    answered = messages[-1]["role"] == "assistant"
    asked = messages[:-1] if answered else messages
    text = prompts.render(
        asked,
        template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        add_generation_prompt=True,
    )
    encoded = prompts.encode(tokenizer, messages, template) if answered else None
    labels = encoded["labels"][len(prompt) :] if encoded else []
    answer = [token for token in labels if token != IGNORED]
    return ProofRow(text.removeprefix(tokenizer.bos_token or ""), prompt, answer)
