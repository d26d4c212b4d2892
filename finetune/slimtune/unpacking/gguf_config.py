"""The metadata of a GGUF as a config.json: what `export.architecture` writes, read back.

A key that SlimTune does not know may change what the model computes, so files with one are refused
by its name, as are architectures that are not in `models.family`.
"""

from typing import Any

import numpy as np

from slimtune.console import near
from slimtune.errors import InputError
from slimtune.export.architecture import FACTORS, factors, read_rope
from slimtune.inference.gguf_tokenizer import GgufTokens
from slimtune.models.family import FAMILIES, Family
from slimtune.models.gguf_header import GgufHeader, damaged

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
# Sizes that every file must have: name in the file -> in config.json.
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
_READ = {
    *_SIZES,
    *_SCALING,
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
    "rope.scaling.finetuned",  # a remark
}
# Keys that may be there as long as they say what holds anyway.
_HARMLESS = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}
# A key of config.json that gives biases -> the first tensor that they give; `require_tensors` tells
# whether all are there.
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
# Llama-3.1 and 3.2 differ in the first of these only; other models have not been seen.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_config(header: GgufHeader, tokens: GgufTokens, rope_factors: np.ndarray | None) -> dict:
    """The config.json of a file; `rope_factors` are the values of its rope_freqs.weight.

    Raises InputError for an architecture, a key or a position scaling that SlimTune does not know,
    and for sizes that do not add up.
    """
    family = family_of_file(header)
    _require_known_keys(header)
    sizes = {ours: _size(header, theirs) for theirs, ours in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    kv_heads = _size(header, "attention.head_count_kv", heads)
    head_dim = _size(header, "attention.key_length", max(1, sizes["hidden_size"] // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if _size(header, key, head_dim) != head_dim:
            raise _unknown(header, f"{key} is not the size of a head, {head_dim}")
    if sizes["num_hidden_layers"] > len(header.tensors) or heads % kv_heads or head_dim % 2:
        raise damaged(header.file, f"{sizes}, {kv_heads} heads of keys of {head_dim} values")
    saved = _saved_as(header, family, sizes["hidden_size"] % heads == 0)
    embedding = header.tensors.get(_EMBEDDING)
    if embedding is None or len(tokens.tokens) > embedding.shape[0]:
        raise damaged(header.file, f"{len(tokens.tokens)} tokens have no rows in {_EMBEDDING}")
    config = {
        "architectures": [saved.model_class],
        "model_type": saved.model_type,
        **sizes,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "hidden_act": "silu",
        "rms_norm_eps": _decimal(header, "attention.layer_norm_rms_epsilon", None),
        "tie_word_embeddings": _OUTPUT not in header.tensors,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "pad_token_id": tokens.padding,
        **{key: _BIASES[key] in header.tensors for key in saved.bias_keys},
        "sliding_window": None,  # some classes of transformers would else have one of their own
    }
    rope = _rope(header, sizes["max_position_embeddings"])
    if rope_factors is not None:
        rope = _llama3(header, rope, rope_factors, head_dim)
    return config | {"rope_parameters": rope}


def family_of_file(header: GgufHeader) -> Family:
    """The family whose graph in llama.cpp the file is for; InputError for an unknown one."""
    known = {family.gguf: family for family in reversed(FAMILIES.values())}
    if header.architecture in known:
        return known[header.architecture]
    raise InputError(
        f"{near(header.file)}: the architecture {header.architecture or '(none)'}",
        f"SlimTune unpacks {', '.join(sorted(known))}",
        "begin with a GGUF or a folder of one of these; evaluate_model.py --models can still "
        "compare this file and talk to it",
    )


def _require_known_keys(header: GgufHeader) -> None:
    prefix = f"{header.architecture}."
    for key, value in header.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _READ:
            continue
        plain = isinstance(value, int | float | str)
        if not plain or name not in _HARMLESS or value != _HARMLESS[name]:
            raise _unknown(header, f"{key} is {value if plain else 'a list'}")


def _size(header: GgufHeader, name: str, otherwise: int | None = None) -> int:
    key = f"{header.architecture}.{name}"
    value = header.metadata.get(key, otherwise)
    if isinstance(value, np.ndarray | list):
        raise _unknown(header, f"{key} differs from layer to layer")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise damaged(header.file, f"{key} is {value!r}")
    return value


def _decimal(header: GgufHeader, name: str, otherwise: float | None) -> float:
    """A float32 as the decimal number that was meant: 1e-05, and not 9.999999747e-06."""
    key = f"{header.architecture}.{name}"
    value = header.metadata.get(key, otherwise)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise damaged(header.file, f"{key} is {value!r}")
    return float(str(np.float32(value)))


def _saved_as(header: GgufHeader, family: Family, divided: bool) -> Family:
    """The family whose class in transformers holds the model.

    A Llama with biases in q, k and v alone is how llama.cpp reads a Qwen2 whose heads were cut.
    """
    if family.gguf == "llama" and _BIASES["attention_bias"] in header.tensors:
        whole = "blk.0.attn_output.bias" in header.tensors
        return family if whole else FAMILIES["qwen2"]
    return family if divided or family.undivided is None else FAMILIES[family.undivided]


def _rope(header: GgufHeader, context: int) -> dict[str, Any]:
    prefix = header.architecture
    theta = _decimal(header, "rope.freq_base", 10000.0)
    kind = header.get(f"{prefix}.rope.scaling.type", str, "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise _unknown(header, f"its positions are scaled by {kind!r}")
    factor = _decimal(header, "rope.scaling.factor", None)
    scaled = {"rope_type": kind, "rope_theta": theta, "factor": factor}
    if kind == "yarn":
        original = _size(header, "rope.scaling.original_context_length", context)
        scaled["original_max_position_embeddings"] = original
    return scaled


def _llama3(
    header: GgufHeader, rope: dict[str, Any], given: np.ndarray, head_dim: int
) -> dict[str, Any]:
    """Llama-3's scaling, found again from the divisors of the frequencies that it makes."""
    found = rope | {"rope_type": "llama3", "factor": float(given.max()), **_LLAMA3}
    config = {"rope_parameters": found, "max_position_embeddings": 1}
    made = factors(read_rope(config), head_dim)
    same = made.shape == given.shape and np.allclose(made, given, rtol=1e-4)
    if rope["rope_type"] != "default" or not same:
        raise _unknown(header, f"{FACTORS} is not what Llama-3's position scaling makes")
    return found


def _unknown(header: GgufHeader, what: str) -> InputError:
    return InputError(
        f"{near(header.file)}: a {header.architecture} in a form that SlimTune does not know",
        what,
        "begin with the original model's folder; evaluate_model.py --models can still compare "
        "this file and talk to it",
    )
