"""The JSON files of a model folder, checked before transformers sees them.

transformers and tokenizers answer a damaged file with whatever their own code trips over. Here a
file is an object whose known keys have the right kind of value, or an InputError names it; keys
that nobody here reads may hold anything, and null stands for "not set" everywhere.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import read_json, require_fetched
from slimtune.errors import InputError

_LARGEST_SIZE = 1 << 24  # of a vocabulary; a model is planned and built by what config.json says

Check = Callable[[Any], bool]
Kind = tuple[str, Check]  # what it must be, in words and as a test


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_count(value) and 1 <= value <= _LARGEST_SIZE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or _is_described(value)


def _is_described(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _are_ids(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list) and all(map(_is_count, value)))


def _are_ascending(value: Any) -> bool:
    if not isinstance(value, list) or not all(map(_is_count, value)):
        return False
    return all(one >= 0 for one in value[:1]) and all(a < b for a, b in pairwise(value))


def _are_added(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(_is_described(token) and _is_count(token.get("id")) for token in value)


def _are_decoded(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(key.isdecimal() and _is_described(token) for key, token in value.items())


COUNT: Kind = ("a whole number", _is_count)
SIZE: Kind = (f"a whole number from 1 to {_LARGEST_SIZE:,}", _is_size)
NUMBER: Kind = ("a number", _is_number)
TRUTH: Kind = ("true or false", lambda value: isinstance(value, bool))
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
TOKEN: Kind = ("a token's text, or an object with its content", _is_token)
IDS: Kind = ("a token id or a list of them", _are_ids)
TEMPLATE: Kind = ("a text, or several by name", lambda value: isinstance(value, str | dict | list))

_SPECIAL_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), TOKEN)
_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), IDS)

# File -> key -> kind. A file that is listed is checked wherever it lies in a model folder.
FILES: Mapping[str, Mapping[str, Kind]] = {
    "config.json": {
        "model_type": TEXT,
        **dict.fromkeys(
            (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "vocab_size",
            ),
            SIZE,
        ),
        **dict.fromkeys(("max_position_embeddings", "sliding_window"), COUNT),
        **dict.fromkeys(("rms_norm_eps", "rope_theta", "initializer_range"), NUMBER),
        **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), TRUTH),
        **dict.fromkeys(("rope_parameters", "rope_scaling", "quantization_config"), OBJECT),
        **_IDS,
    },
    "generation_config.json": {
        **dict.fromkeys(("max_length", "max_new_tokens", "min_new_tokens", "top_k"), COUNT),
        **dict.fromkeys(("temperature", "top_p", "repetition_penalty"), NUMBER),
        "do_sample": TRUTH,
        **_IDS,
    },
    "tokenizer_config.json": {
        **_SPECIAL_TOKENS,
        "added_tokens_decoder": ("an object of described tokens by their ids", _are_decoded),
        "chat_template": TEMPLATE,
        "model_max_length": NUMBER,
        **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space"), TRUTH),
        "tokenizer_class": TEXT,
    },
    "special_tokens_map.json": _SPECIAL_TOKENS,
    "tokenizer.json": {
        "model": OBJECT,
        "added_tokens": ("a list of described tokens with their ids", _are_added),
    },
    "added_tokens.json": {},
    "vocabulary_map.json": {
        "tokens_before": SIZE,
        "kept": ("a list of token ids, ascending", _are_ascending),
        "trimmed_from": TEXT,
    },
    "adapter_config.json": {
        **dict.fromkeys(("peft_type", "base_model_name_or_path"), TEXT),
        **dict.fromkeys(("rank_pattern", "alpha_pattern"), OBJECT),
        "layers_to_transform": ("a layer's number or a list of them", _are_ids),
    },
}


def read_model_json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file of a model folder, {} where an `optional` one is missing.

    InputError where it is missing or malformed, or a known key holds another kind of value.
    """
    content = read_json(file, "copy it again from the original model", optional=optional)
    require_kinds(file, content)
    return content


def require_kinds(file: Path, content: Any) -> None:
    """InputError where a file's `content` is no object, or a key holds another kind of value."""
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: not a JSON object",
            f"it holds a {type(content).__name__}: {str(content)[:60]}",
            "copy it again from the original model",
        )
    for key, (words, fits) in FILES.get(file.name, {}).items():
        value = content.get(key)
        if value is not None and not fits(value):
            raise InputError(
                f"{file}: {key} is {str(value)[:60]!r}",
                f"it must be {words}",
                "copy the file again from the original model",
            )


def require_whole(file: Path) -> None:
    """InputError for a file that does not look like a whole JSON object, its content unread.

    tokenizer.json has tens of megabytes in some families: only who needs it reads all of it.
    """
    with file.open("rb") as stream:
        start = stream.read(64).lstrip()[:1]
        stream.seek(max(0, file.stat().st_size - 64))
        end = stream.read().rstrip()[-1:]
    if (start, end) != (b"{", b"}"):
        require_fetched(file)
        raise InputError(
            f"{file}: not a whole JSON object",
            f"it begins with {start.decode('ascii', 'replace')!r} and ends with "
            f"{end.decode('ascii', 'replace')!r} instead of '{{' and '}}'",
            "copy it again from the original model",
        )
