"""Checks of a model folder that cost milliseconds: end tokens that agree, norms that are finite."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtune.console import InputError
from slimtune.export.vocabulary import Vocabulary
from slimtune.models.checkpoints import Checkpoint

# What GGUF and SentencePiece call the tokens when no file of the folder names them.
_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class SpecialTokens:
    """The texts of a tokenizer's first and last token; `bos` is empty where it has none."""

    bos: str
    eos: str


def special_tokens(folder: Path, vocabulary: Vocabulary) -> SpecialTokens:
    """From tokenizer_config.json or special_tokens_map.json, else SentencePiece's own names."""
    files = [_read(folder / f"{name}.json") for name in ("tokenizer_config", "special_tokens_map")]
    found = {key: _text(next((f[key] for f in files if f.get(key)), None)) for key in _DEFAULTS}
    for key, default in _DEFAULTS.items():
        if found[key] is None and default.encode() in vocabulary.tokens:
            found[key] = default
    return SpecialTokens(found["bos_token"] or "", found["eos_token"] or "")


def require_one_end(folder: Path, vocabulary: Vocabulary) -> None:
    """InputError unless config, generation config and tokenizer name the same end token.

    The first two may name several; one of them must be the tokenizer's. A model whose files
    disagree stops in one program and runs on in another.
    """
    text = special_tokens(folder, vocabulary).eos
    if text.encode() not in vocabulary.tokens:
        raise InputError(
            f"{folder}: the end token {text!r} is not in the vocabulary",
            "tokenizer_config.json names it; without its id no answer would ever end",
            "copy the tokenizer's files again from the model it was trained with",
        )
    token = vocabulary.tokens.index(text.encode())
    for name in ("config.json", "generation_config.json"):
        ids = _read(folder / name).get("eos_token_id")
        named = ids if isinstance(ids, list) else [ids]
        if ids is not None and token not in named:
            raise InputError(
                f"{folder / name}: eos_token_id is {ids}",
                f"the tokenizer's end token is {text!r}, id {token}: answers would not end",
                f"write {token} there, if the model was trained with {text!r}; "
                "else correct eos_token in tokenizer_config.json",
            )


def require_finite(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """InputError if a small tensor (norms, biases) holds NaN or infinity: training diverged."""
    for name in names:
        values = checkpoint.read_float32(name).reshape(-1)
        odd = np.flatnonzero(~np.isfinite(values))
        if len(odd):
            raise InputError(
                f"{checkpoint.folder}: {name} holds {values[odd[0]]} at {odd[0]}",
                f"{len(odd)} of {len(values)} values are not finite: training diverged",
                "train again with a smaller learning rate, or copy the folder again",
            )


def _text(token: str | dict | None) -> str | None:
    """A token's text; older files write an object with its "content"."""
    return token["content"] if isinstance(token, dict) else token


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
