"""What the model itself says, in transformers and float32: the truth that a GGUF is measured by."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reference:
    """A greedy answer without its end token, and how likely the scored answer is.

    `margins`: nats between first and second choice of each step, the end included; `scored`: the
    ids whose negative log-likelihoods (nats) are `losses`.
    """

    ids: list[int]
    margins: list[float]
    stopped: bool
    scored: list[int]
    losses: list[float]


def refer(
    model: PreTrainedModel, prompt: list[int], answer: list[int], eos: int, max_new_tokens: int
) -> Reference:
    """The greedy answer to a prompt, and the losses of `answer` (empty: of the greedy one)."""
    ids, margins, stopped = greedy(model, prompt, eos, max_new_tokens)
    scored = answer or ids + [eos] * stopped
    return Reference(ids, margins, stopped, scored, nll(model, prompt, scored))


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
    logits = model(ids[None, :-1]).logits[0, len(prompt) - 1 :]
    return torch.nn.functional.cross_entropy(logits, ids[len(prompt) :], reduction="none").tolist()
