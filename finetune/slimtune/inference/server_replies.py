"""What is sent to a server and what its JSON means, in both ways of speaking: no network here.

OpenAI's chat completions know temperature, top_p, seed and the longest answer. What else a decoding
says is in `_MORE`, under the names that llama-server, LM Studio and vLLM read: a server that left
one out would answer with a default of its own (LM Studio's repeat penalty is 1.1, vLLM takes the
model's generation_config.json). Ollama's `/v1` reads none of them, its own `/api/chat` all.

https://platform.openai.com/docs/api-reference/chat
https://github.com/ollama/ollama/blob/main/docs/api.md
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from slimtune.inference.decoding import Decoding

Messages = Sequence[Mapping[str, str]]

# Name in a request -> (field of Decoding, the value with which it changes nothing).
_MORE: dict[str, tuple[str, float]] = {
    "top_k": ("top_k", 0),
    "min_p": ("min_p", 0.0),
    "repeat_penalty": ("repeat_penalty", 1.0),
    "repetition_penalty": ("repeat_penalty", 1.0),  # vLLM's name for it
}
# The penalty looks back on all of prompt and answer: llama.cpp's own window is 64 tokens. -1, which
# meant the whole context once, is refused by b11549; it reserves four bytes a token.
_WINDOW = {"repeat_last_n": 1 << 16}
MORE = (*_MORE, *_WINDOW)
# Of these a decoding knows nothing, and a Modelfile may.
_NONE = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
# What is left of a request that says nothing of sampling.
_UNSAID = ("model", "messages", "stream", "stream_options", "truncate", "shift", "options")
_UNSAID += ("max_tokens", "num_predict")
_CUT = ("length", "max_tokens")  # reasons of an end that is not the model's own


@dataclass(frozen=True)
class Piece:
    """A part of an answer: text, why the answer ended (at its end), and what the server counted."""

    text: str = ""
    end: str | None = None
    tokens: int | None = None
    model: str | None = None
    prompt_tokens: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether the model ended its answer itself."""
        return self.end not in _CUT


def openai_body(
    model: str, messages: Messages, decoding: Decoding, without: Sequence[str] = ()
) -> dict[str, Any]:
    """A request for a streamed answer; `without` names what of MORE the server does not take."""
    more = {name: getattr(decoding, known) for name, (known, _) in _MORE.items()}
    if decoding.repeat_penalty != 1:
        more |= _WINDOW
    return {
        "model": model,
        "messages": [dict(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_tokens": decoding.max_new_tokens,
        "seed": decoding.seed,
        **_NONE,
        **{name: value for name, value in more.items() if name not in without},
    }


def unsaid(body: Mapping[str, Any], decoding: Decoding) -> dict[str, Any]:
    """A request that says nothing of sampling: whoever serves the model decides.

    What is left of the decoding is the longest answer and, where it draws, the seed.
    """
    kept = _UNSAID if decoding.greedy else (*_UNSAID, "seed")
    shorter = {name: value for name, value in body.items() if name in kept}
    if "options" in body:
        shorter["options"] = unsaid(body["options"], decoding)
    return shorter


def counts(name: str, decoding: Decoding) -> bool:
    """Whether a part of MORE changes answers of this decoding: where it is greedy, few do."""
    if name in _WINDOW:
        return decoding.repeat_penalty != 1
    known, nothing = _MORE[name]
    drawn = known in ("top_k", "min_p")
    return getattr(decoding, known) != nothing and not (drawn and decoding.greedy)


def ollama_body(model: str, messages: Messages, decoding: Decoding) -> dict[str, Any]:
    """The same for Ollama. A prompt that its context does not hold is an error, not cut."""
    return {
        "model": model,
        "messages": [dict(message) for message in messages],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {
            "temperature": decoding.temperature,
            "top_k": decoding.top_k,
            "top_p": decoding.top_p,
            "min_p": decoding.min_p,
            "repeat_penalty": decoding.repeat_penalty,
            "num_predict": decoding.max_new_tokens,
            "seed": decoding.seed,
            **_WINDOW,
            **_NONE,
        },
    }


def openai_piece(event: Mapping[str, Any]) -> Piece:
    """An event of a stream, or a whole answer; ValueError with words for what is neither."""
    choices, usage = event.get("choices"), event.get("usage")
    if not isinstance(choices, list):
        raise ValueError("no list of choices")
    found = {
        "tokens": _count(usage, "completion_tokens"),
        "model": _text(event, "model"),
        "prompt_tokens": _count(usage, "prompt_tokens"),
    }
    if not choices:  # the event that only counts
        return Piece(**found)
    choice = choices[0]
    said = choice.get("delta", choice.get("message")) if isinstance(choice, dict) else None
    if not isinstance(said, dict):
        raise ValueError("a choice without a message")
    content = said.get("content")
    silent = content is None and ("delta" in choice or _reasons(said))
    if not isinstance(content, str) and not silent:
        raise ValueError("a choice without text")
    return Piece(content or "", _text(choice, "finish_reason"), **found)


def ollama_piece(event: Mapping[str, Any]) -> Piece:
    """A line of a stream, or a whole answer; ValueError with words for what is neither."""
    said = event.get("message")
    if not isinstance(said, dict) or not isinstance(said.get("content"), str):
        raise ValueError("no message with text")
    end = (_text(event, "done_reason") or "stop") if event.get("done") is True else None
    counts = _count(event, "eval_count"), _text(event, "model"), _count(event, "prompt_eval_count")
    return Piece(said["content"], end, *counts)


def _reasons(said: Mapping[str, Any]) -> bool:
    """A model that used up its tokens while it still thought, or calls a tool: no text is right."""
    return any(said.get(name) for name in ("reasoning_content", "reasoning", "tool_calls"))


def _count(found: Any, name: str) -> int | None:
    value = found.get(name) if isinstance(found, dict) else None
    return value if type(value) is int and value >= 0 else None


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) else None


class Listed(NamedTuple):
    """A model that a server says it has. `fingerprint` changes with the model, not with time."""

    name: str
    fingerprint: str | None = None
    parameters: int | None = None
    bytes: int | None = None


def openai_listed(found: Mapping[str, Any]) -> list[Listed]:
    """The models of a `/models`; ValueError for what is no list."""
    return [_openai_entry(entry) for entry in _entries(found, "data", "id")]


def ollama_listed(found: Mapping[str, Any]) -> list[Listed]:
    """The models of an `/api/tags`; ValueError for what is no list."""
    return [
        Listed(entry["name"], _text(entry, "digest"), None, _count(entry, "size"))
        for entry in _entries(found, "models", "name")
    ]


def _entries(found: Mapping[str, Any], place: str, name: str) -> list[dict[str, Any]]:
    entries = found.get(place)
    if not isinstance(entries, list):
        raise ValueError("a list of models without a list")
    named = [one for one in entries if isinstance(one, dict) and isinstance(one.get(name), str)]
    return [one for one in named if one[name].isprintable() and 0 < len(one[name]) < 1000]


def _openai_entry(entry: Mapping[str, Any]) -> Listed:
    """llama-server tells what its model is made of (`meta`); its `created` is only the clock."""
    meta = entry.get("meta")
    told = json.dumps([entry["id"], entry.get("root"), meta], sort_keys=True)
    fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]
    return Listed(entry["id"], fingerprint, _count(meta, "n_params"), _count(meta, "size"))
