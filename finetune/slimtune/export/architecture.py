"""From a Hugging Face config and its tensor names to llama.cpp's architecture `llama`.

Llama and Mistral folders differ only in their config: the same tensors, the same graph. Mistral's
sliding window equals full attention as long as the context fits into it, so it becomes the file's
context length.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from slimtune.console import InputError

MODEL_TYPES = ("llama", "mistral")
_SKIPPED = "rotary_emb.inv_freq"  # old checkpoints store what llama.cpp computes
_BITSANDBYTES = re.compile(r"\.(SCB|absmax|quant_map|quant_state\..*|nested_absmax|weight_format)$")


@dataclass(frozen=True)
class Architecture:
    """The numbers llama.cpp needs to build the graph."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocabulary: int
    epsilon: float
    rope_theta: float
    rope_factor: float | None  # linear position scaling
    tied: bool

    @property
    def seventy_billion(self) -> bool:
        """llama.cpp's own test for Llama-2-70B: 80 layers and grouped heads."""
        return self.layers == 80 and self.heads != self.kv_heads


def read_architecture(folder: Path, config: dict) -> Architecture:
    """The numbers of a config.json; InputError for a model that cannot be converted faithfully."""
    _require_supported(folder, config)
    try:
        return _from_config(config)
    except KeyError as error:
        raise InputError(
            f"{folder / 'config.json'}: no {error.args[0]}",
            "a Llama cannot be described without it",
            "copy config.json again from the original model",
        ) from error


def _from_config(config: dict) -> Architecture:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads = config["num_attention_heads"]
    context = config["max_position_embeddings"]
    return Architecture(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        context=min(context, config.get("sliding_window") or context),
        vocabulary=config["vocab_size"],
        epsilon=config["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        rope_factor=rope["factor"] if _rope_type(config) == "linear" else None,
        tied=bool(config.get("tie_word_embeddings")),
    )


def map_tensors(
    folder: Path, architecture: Architecture, shapes: dict[str, tuple[int, ...]]
) -> dict[str, str]:
    """GGUF name -> Hugging Face name in llama.cpp's file order: globals, then layers, by name.

    Raises InputError for tensors that are quantised, unknown, of a wrong shape, or missing.
    """
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, architecture.layers)
    mapped: dict[str, str] = {}
    for name in shapes:
        if name.endswith(_SKIPPED) or (architecture.tied and name == "lm_head.weight"):
            continue
        target = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise _unknown_tensor(folder, name)
        mapped[target] = name
    _require_shapes(folder, architecture, {t: shapes[name] for t, name in mapped.items()})
    return {target: mapped[target] for target in sorted(mapped, key=_file_order)}


def row_order(architecture: Architecture, name: str) -> np.ndarray | None:
    """Order of a head's rows in the file, for the q and k projections; None for other tensors.

    Hugging Face rotates value i with i + d/2, llama.cpp rotates neighbours 2i and 2i+1: row 2i+j of
    the file is row i + j·d/2 of the head.
    """
    if not re.search(r"attn_[qk]\.(weight|bias)$", name):
        return None
    return np.arange(architecture.head_dim).reshape(2, -1).T.reshape(-1)


def write_architecture(writer: gguf.GGUFWriter, architecture: Architecture) -> None:
    a = architecture
    writer.add_block_count(a.layers)
    writer.add_context_length(a.context)
    writer.add_embedding_length(a.hidden)
    writer.add_feed_forward_length(a.ffn)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    if a.rope_factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(a.rope_factor)
    writer.add_rope_freq_base(a.rope_theta)
    writer.add_layer_norm_rms_eps(a.epsilon)
    writer.add_key_length(a.head_dim)
    writer.add_value_length(a.head_dim)
    writer.add_vocab_size(a.vocabulary)
    writer.add_rope_dimension_count(a.head_dim)


def _require_supported(folder: Path, config: dict) -> None:
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise _hand_over(folder, f"its model_type is {kind!r}; SlimTune converts {MODEL_TYPES}")
    if "quantization_config" in config:
        raise _quantised(folder, "config.json has a quantization_config")
    if config.get("hidden_act", "silu") != "silu":
        raise _hand_over(folder, f"its activation is {config['hidden_act']!r}, not silu")
    if _rope_type(config) not in ("default", "linear"):
        raise _hand_over(folder, f"its position scaling is {_rope_type(config)!r}")


def _rope_type(config: dict) -> str:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("rope_type") or rope.get("type") or "default"


def _require_shapes(folder: Path, a: Architecture, shapes: dict[str, tuple[int, ...]]) -> None:
    expected = _expected_shapes(a)
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} tensors missing, first {missing[0]}",
            f"config.json promises {a.layers} layers"
            + ("" if a.tied else " and an output matrix (tie_word_embeddings is false)"),
            "run the stage that wrote this folder again, or copy the missing shards",
        )
    for name, shape in shapes.items():
        wanted = expected.get(name, shape if name.endswith(".bias") else None)
        if shape != wanted:
            raise InputError(
                f"{folder}: {name} has the shape {shape}",
                f"config.json asks for {wanted or 'no such tensor'}",
                "config and weights belong to different models; take both from one folder",
            )


def _expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    layer = {
        "attn_norm": (a.hidden,),
        "attn_q": (q, a.hidden),
        "attn_k": (kv, a.hidden),
        "attn_v": (kv, a.hidden),
        "attn_output": (a.hidden, q),
        "ffn_norm": (a.hidden,),
        "ffn_gate": (a.ffn, a.hidden),
        "ffn_up": (a.ffn, a.hidden),
        "ffn_down": (a.hidden, a.ffn),
    }
    expected: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (a.vocabulary, a.hidden),
        "output_norm.weight": (a.hidden,),
    }
    if not a.tied:
        expected["output.weight"] = (a.vocabulary, a.hidden)
    for i in range(a.layers):
        expected |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return expected


def _file_order(name: str) -> tuple[int, bytes]:
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    return layer, name.encode()


def _unknown_tensor(folder: Path, name: str) -> InputError:
    if _BITSANDBYTES.search(name):
        return _quantised(folder, f"it holds {name}")
    return _hand_over(folder, f"it holds {name}, which a Llama does not have")


def _quantised(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder}: these weights are already quantised (bitsandbytes or similar)",
        f"{why}; quantising twice ruins a model",
        "merge the adapter into the 16-bit base: python finetune/evaluate_model.py --merge",
    )


def _hand_over(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder}: not a model that SlimTune converts",
        why,
        "use llama.cpp's own convert_hf_to_gguf.py for this model",
    )
