"""Position scaling: what config.json calls rope_parameters (or rope_scaling), as GGUF metadata.

Linear (arXiv:2306.15595) and YaRN (arXiv:2309.00071) are metadata; Llama-3's scaling is a tensor of
factors, one for each frequency.
"""

import math
from dataclasses import dataclass

import gguf
import numpy as np

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


def kind(config: dict) -> str:
    parameters = _parameters(config)
    return parameters.get("rope_type") or parameters.get("type") or "default"


def unknown(config: dict) -> str | None:
    """What of the scaling llama.cpp cannot do, None if nothing."""
    found, parameters = kind(config), _parameters(config)
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


def read(config: dict) -> Rope:
    parameters = _parameters(config)
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    context = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    original = {"original_max_position_embeddings": context}
    return Rope(kind(config), theta, original | parameters)


def write(writer: gguf.GGUFWriter, rope: Rope) -> None:
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
