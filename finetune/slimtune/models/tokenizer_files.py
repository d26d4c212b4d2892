"""What a folder's tokenizer files say of its special tokens, without loading the tokenizer.

Whether BOS stands before every text is decided here, once, from what the tokenizer does: a token
that is named bos (SmolLM2's <|im_start|>, Qwen's <|endoftext|>) need not be one that is put in
front. Training, the GGUF's `add_bos_token`, the proof and the Modelfile follow this one answer.

Of a tokenizer.json only the few lines before the megabytes of tokens are parsed where they suffice:
parsed whole, Llama-2's takes 40 MB of Python objects, a third of what a conversion may.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from slimtune import prompts
from slimtune.errors import InputError
from slimtune.models.folders import read_template
from slimtune.models.json_files import read_model_json, require_kinds

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*\{')
_HEAD_BYTES = 1 << 20
_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>"}  # SentencePiece's own names
_TEXT = "\ue000"  # of no alphabet: no special token is called so


@dataclass(frozen=True)
class SpecialTokens:
    """The texts of the first and last token, "" where there is none, and who writes the first.

    `puts_bos`: the tokenizer itself puts `bos` before every text. `eos` is what ends an answer in
    the model's own chat template; `named_eos` what the files call so, mostly the same.
    """

    bos: str
    eos: str
    puts_bos: bool
    named_eos: str = ""


class TemplateFacts(NamedTuple):
    """What `prompts.resolve_template` asks of a model, in its order."""

    own: str | None
    puts_bos: bool
    tokens: frozenset[str]


def special_tokens(folder: Path, vocabulary: Iterable[bytes] = ()) -> SpecialTokens:
    """From tokenizer_config.json or special_tokens_map.json, else SentencePiece's own names.

    The latter only where `vocabulary` has them. Raises InputError for a tokenizer.json that puts
    something else than BOS before every text: no GGUF setting says so.
    """
    files = [
        read_model_json(folder / f"{name}.json", optional=True)
        for name in ("tokenizer_config", "special_tokens_map")
    ]
    found = {key: text_of(next((f[key] for f in files if f.get(key)), None)) for key in _DEFAULTS}
    for key, default in _DEFAULTS.items():
        if found[key] is None and default.encode() in vocabulary:
            found[key] = default
    bos, eos = found["bos_token"] or "", found["eos_token"] or ""
    end = prompts.end_of_answer(own_template(folder), eos, _special(folder, files[0]))
    return SpecialTokens(bos, end or eos, _puts_bos(folder, files[0], bos), eos)


def _special(folder: Path, config: dict) -> list[str]:
    added = read_head(folder / JSON_FILE).get("added_tokens", [])
    listed = [*added, *config.get("added_tokens_decoder", {}).values()]
    return [token["content"] for token in listed if token.get("special")]


def template_facts(folder: Path) -> TemplateFacts:
    """What decides about a model's prompt template: its own, who writes BOS, its added tokens."""
    added = read_head(folder / JSON_FILE).get("added_tokens", [])
    tokens = frozenset(token["content"] for token in added)
    return TemplateFacts(own_template(folder), special_tokens(folder).puts_bos, tokens)


def own_template(folder: Path) -> str | None:
    """chat_template.jinja, or what an older folder keeps in tokenizer_config.json."""
    own = read_template(folder)
    if own is not None:
        return own
    found = read_model_json(folder / TOKENIZER_CONFIG, optional=True).get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {one["name"]: one["template"] for one in found}
        found = named.get("default", next(iter(named.values()), None))
    return found


def sentencepiece_puts_bos(config: dict) -> bool:
    """A SentencePiece model says nothing of it: `add_bos_token` decides, and true is Llama's."""
    said = config.get("add_bos_token")
    return True if said is None else said


def _puts_bos(folder: Path, config: dict, bos: str) -> bool:
    if (folder / SENTENCEPIECE_FILE).is_file() or not (folder / JSON_FILE).is_file():
        return sentencepiece_puts_bos(config)
    before = put_before(read_head(folder / JSON_FILE))
    if before not in ([], [bos]):
        raise InputError(
            f"{folder / JSON_FILE}: puts {' '.join(before)} before every text",
            f"llama.cpp puts one token there or none, the BOS; this tokenizer's is {bos or 'none'}",
            f"name that token bos_token in {TOKENIZER_CONFIG}, if it is only one",
        )
    return before == [bos]


def put_before(head: dict) -> list[str]:
    """The tokens that the post-processor of a tokenizer.json puts before a text.

    It is run, not read, in a tokenizer that knows one character. transformers asks no
    `add_bos_token` of tokenizer_config.json where there is a tokenizer.json.
    """
    bare = {"model": {"type": "BPE", "vocab": {_TEXT: 0}, "merges": []}}
    processor = {"post_processor": head.get("post_processor")}
    tokens = Tokenizer.from_str(json.dumps(bare | processor)).encode(_TEXT).tokens
    return tokens[: tokens.index(_TEXT)]


def read_head(file: Path) -> dict:
    """All of a tokenizer.json but "model", {} where there is no file.

    The library tokenizers writes "model" last, so that what stands before it is read alone; another
    order costs the whole file.
    """
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        start = stream.read(_HEAD_BYTES)
    found = _MODEL.search(start)
    if found:
        try:
            head = json.loads(start[: found.start()].rstrip().rstrip(b",") + b"}")
        except ValueError:
            head = {}
        if {"added_tokens", "post_processor"} <= head.keys():
            require_kinds(file, head)
            return head
    whole = read_model_json(file)
    whole.pop("model", None)
    return whole


def text_of(token: str | dict | None) -> str | None:
    """A token's text; older files write an object with its "content"."""
    return token["content"] if isinstance(token, dict) else token
