"""Hugging Face tensors under llama.cpp's names, in its order; all there, with the right shapes."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import gguf
import numpy as np

from slimtune.console import InputError
from slimtune.export.architecture import Architecture, quantised, unsupported

_SKIPPED = "rotary_emb.inv_freq"  # old checkpoints store what llama.cpp computes
_BITSANDBYTES = re.compile(r"\.(SCB|absmax|quant_map|quant_state\..*|nested_absmax|weight_format)$")
_ARCHITECTURES = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}

TensorShape = tuple[int, ...]


def require_unquantised(folder: Path, names: Iterable[str]) -> None:
    """InputError that names the first tensor with which bitsandbytes keeps a quantised matrix."""
    odd = next((name for name in names if _BITSANDBYTES.search(name)), None)
    if odd is not None:
        raise quantised(folder, f"it holds {odd}")


def map_tensors(
    folder: Path, architecture: Architecture, shapes: dict[str, TensorShape]
) -> dict[str, str]:
    """GGUF name -> Hugging Face name in llama.cpp's file order: globals, then layers, by name.

    Raises InputError for tensors that are quantised, of a wrong shape, or missing, Unsupported for
    unknown ones.
    """
    mapped: dict[str, str] = {}
    for name in shapes:
        if name.endswith(_SKIPPED) or (architecture.tied and name == "lm_head.weight"):
            continue
        target = gguf_name(architecture, name)
        if target is None:
            raise _unknown_tensor(folder, name)
        mapped[target] = name
    _require_shapes(folder, architecture, {t: shapes[name] for t, name in mapped.items()})
    return {target: mapped[target] for target in sorted(mapped, key=file_order)}


def gguf_name(architecture: Architecture, name: str) -> str | None:
    """llama.cpp's name of a tensor, None for one it does not know."""
    table = _table(architecture.name, architecture.layers)
    return table.get_name(name, try_suffixes=(".weight", ".bias"))


def row_order(architecture: Architecture, name: str) -> np.ndarray | None:
    """Order of a head's rows in the file, for Llama's q and k projections; None for the others.

    Hugging Face rotates value i with i + d/2, as llama.cpp does for Qwen2; for Llama it rotates
    neighbours 2i and 2i+1: row 2i+j of the file is row i + j·d/2 of the head.
    """
    if architecture.name != "llama" or not re.search(r"attn_[qk]\.(weight|bias)$", name):
        return None
    return np.arange(architecture.head_dim).reshape(2, -1).T.reshape(-1)


@cache
def _table(architecture: str, layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(_ARCHITECTURES[architecture], layers)


def file_order(name: str) -> tuple[int, bytes]:
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    return layer, name.encode()


def _require_shapes(folder: Path, a: Architecture, shapes: dict[str, TensorShape]) -> None:
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
        weight = expected.get(name.removesuffix(".bias") + ".weight", ())
        wanted = expected.get(name, weight[:1] if name.endswith(".bias") else None)
        if shape != wanted:
            raise InputError(
                f"{folder}: {name} has the shape {shape}",
                f"config.json asks for {wanted or 'no such tensor'}",
                "config and weights belong to different models; take both from one folder",
            )


def _expected_shapes(a: Architecture) -> dict[str, TensorShape]:
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    layer = {
        "attn_norm.weight": (a.hidden,),
        "attn_q.weight": (q, a.hidden),
        "attn_k.weight": (kv, a.hidden),
        "attn_v.weight": (kv, a.hidden),
        "attn_output.weight": (a.hidden, q),
        "ffn_norm.weight": (a.hidden,),
        "ffn_gate.weight": (a.ffn, a.hidden),
        "ffn_up.weight": (a.ffn, a.hidden),
        "ffn_down.weight": (a.hidden, a.ffn),
    }
    if a.name == "qwen2":
        layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    expected: dict[str, TensorShape] = {
        "token_embd.weight": (a.vocabulary, a.hidden),
        "output_norm.weight": (a.hidden,),
    }
    if not a.tied:
        expected["output.weight"] = (a.vocabulary, a.hidden)
    for i in range(a.layers):
        expected |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return expected


def _unknown_tensor(folder: Path, name: str) -> InputError:
    return unsupported(folder, f"it holds {name}, which this family does not have")
