"""From a Hugging Face config.json to the numbers from which llama.cpp builds its graph.

What the families share and in what they differ is in `models.family`; here is what only GGUF needs.
A sliding window equals full attention as long as the context fits into it, so it becomes the file's
context length. Position scaling (rope_parameters or rope_scaling) becomes metadata where it is
linear (arXiv:2306.15595) or YaRN (arXiv:2309.00071), and a tensor of factors, one for each
frequency, where it is Llama-3's.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np

from slimtune.errors import InputError
from slimtune.models.family import FAMILIES
from slimtune.models.model_shape import ModelShape

_KINDS = ("default", "linear", "yarn", "llama3")
FACTORS = "rope_freqs.weight"

# YaRN's numbers as llama.cpp computes with them; another value would be another model there.
_YARN = {"beta_fast": 32, "beta_slow": 1, "mscale": None, "mscale_all_dim": None, "truncate": True}


@dataclass(frozen=True)
class Rope:
    """Kind of scaling, base frequency (theta), and the numbers of the scaling by their names."""

    kind: str
    theta: float
    scaling: dict[str, float]


def rope_kind(config: dict) -> str:
    parameters = _parameters(config)
    return parameters.get("rope_type") or parameters.get("type") or "default"


def unknown_rope(config: dict) -> str | None:
    """What of the scaling llama.cpp cannot do, None if nothing."""
    found, parameters = rope_kind(config), _parameters(config)
    if found not in _KINDS:
        return f"position scaling {found!r}"
    if found != "yarn":
        return None
    usual = _YARN | {"attention_factor": 1 + 0.1 * math.log(parameters["factor"])}
    for name, value in usual.items():
        given = parameters.get(name)
        if given is not None and (value is None or not math.isclose(given, value, rel_tol=1e-6)):
            return f"YaRN with {name} {given}"
    return None


def read_rope(config: dict) -> Rope:
    parameters = _parameters(config)
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    context = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    original = {"original_max_position_embeddings": context}
    return Rope(rope_kind(config), theta, original | parameters)


def write_rope(writer: gguf.GGUFWriter, rope: Rope) -> None:
    if rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.scaling["factor"])
    if rope.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope.scaling["original_max_position_embeddings"])
    writer.add_rope_freq_base(rope.theta)


def factors(rope: Rope, head_dim: int) -> np.ndarray:
    """Llama-3's divisors of the frequencies, float32 (head_dim / 2).

    1 where a wave is shorter than context / high_freq_factor, `factor` where it is longer than
    context / low_freq_factor, between them 1 / ((1 - s) / factor + s) with s rising from 0 to 1.
    """
    single = np.float32
    steps = np.arange(0, head_dim, 2, dtype=single) / single(head_dim)
    frequencies = single(1) / single(rope.theta) ** steps
    factor = single(rope.scaling.get("factor", 8.0))
    low = single(rope.scaling.get("low_freq_factor", 1.0))
    high = single(rope.scaling.get("high_freq_factor", 4.0))
    context = single(rope.scaling.get("original_max_position_embeddings", 8192))
    waves = single(2 * np.pi) / frequencies
    smooth = (context / waves - low) / (high - low)
    between = single(1) / ((single(1) - smooth) / factor + smooth)
    return np.where(
        waves < context / high, single(1), np.where(waves > context / low, factor, between)
    )


def _parameters(config: dict) -> dict:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


@dataclass(frozen=True)
class Architecture:
    """The numbers llama.cpp needs: the model's shape, and what its graph has beside it."""

    shape: ModelShape
    context: int
    epsilon: float
    head_size_named: bool
    rope: Rope = field(repr=False)

    @property
    def name(self) -> str:
        """llama.cpp's name of the family."""
        return self.shape.family.gguf

    @property
    def seventy_billion(self) -> bool:
        """llama.cpp's own test for Llama-2-70B: 80 layers and grouped heads."""
        grouped = self.shape.heads != self.shape.kv_heads
        return self.name == "llama" and self.shape.layers == 80 and grouped


class Unsupported(InputError):
    """A model that SlimTune does not convert by itself; llama.cpp's own converter may."""


def read_architecture(folder: Path, config: dict) -> Architecture:
    """The numbers of a config.json.

    Raises Unsupported for a model of an unknown family or that has an unknown position
    scaling, InputError for a quantised one and for a config that lacks a number.
    """
    try:
        _require_supported(folder, config)
        return _from_config(config)
    except KeyError as error:
        raise InputError(
            f"{folder / 'config.json'}: no {error.args[0]}",
            "a Llama cannot be described without it",
            "copy config.json again from the original model",
        ) from error


def _from_config(config: dict) -> Architecture:
    shape, context = _shape_of(config), config["max_position_embeddings"]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return Architecture(
        shape=shape,
        context=min(context, window or context),
        epsilon=config["rms_norm_eps"],
        head_size_named=bool(shape.family.gguf_sizes or config.get("head_dim")),
        rope=read_rope(config),
    )


def _shape_of(config: dict) -> ModelShape:
    """The sizes, and as the family the one as which llama.cpp reads a model that was cut."""
    shape = ModelShape.of(config)
    other = shape.family.gguf_undivided
    if other is None or shape.heads * shape.head_dim == shape.hidden:
        return shape
    return replace(shape, family=FAMILIES[other])


def write_architecture(writer: gguf.GGUFWriter, architecture: Architecture) -> None:
    """The keys of llama.cpp's converter, in its order."""
    shape = architecture.shape
    writer.add_block_count(shape.layers)
    writer.add_context_length(architecture.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    write_rope(writer, architecture.rope)
    writer.add_layer_norm_rms_eps(architecture.epsilon)
    if architecture.head_size_named:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if shape.family.gguf_sizes:
        writer.add_vocab_size(shape.vocabulary)
        writer.add_rope_dimension_count(shape.head_dim)


def _require_supported(folder: Path, config: dict) -> None:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise unsupported(folder, f"its model_type is {kind!r}; SlimTune converts {known}")
    if "quantization_config" in config:
        raise quantised(folder, "config.json has a quantization_config")
    if config.get("hidden_act", "silu") != "silu":
        raise unsupported(folder, f"its activation is {config['hidden_act']!r}, not silu")
    scaling = unknown_rope(config)
    if scaling is not None:
        raise unsupported(folder, f"it uses {scaling}")
    _require_known_to_llama_cpp(folder, config)


def _require_known_to_llama_cpp(folder: Path, config: dict) -> None:
    """What transformers' class of a family can hold and llama.cpp's graph of it does not read."""
    shape = _shape_of(config)
    beyond = sorted(shape.bias.difference(shape.family.gguf_biases))
    missing = f"a bias in {beyond[0]}" if beyond else None
    if rope_kind(config) == "llama3" and not shape.family.gguf_factors:
        missing = "Llama-3's position scaling"
    if missing:
        raise InputError(
            f"{folder}: a {shape.family.title} with {missing}",
            f"llama.cpp's graph of {shape.family.title} does not read it, and no GGUF can hold it",
            "use the folder itself with transformers, or begin with another base",
        )


def quantised(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder}: these weights are already quantised (bitsandbytes or similar)",
        f"{why}; quantising twice ruins a model",
        "merge the adapter into the 16-bit base: python finetune/evaluate_model.py --merge",
    )


def unsupported(folder: Path, why: str) -> Unsupported:
    return Unsupported(
        f"{folder}: not a model that SlimTune converts",
        why,
        "set LLAMA_CPP_DIR to a checkout of llama.cpp, whose convert_hf_to_gguf.py then does it",
    )
