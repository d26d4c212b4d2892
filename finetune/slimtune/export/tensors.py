"""Hugging Face tensors under llama.cpp's names, in its order; all there, with the right shapes."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from slimtune.errors import InputError
from slimtune.export.architecture import Architecture, quantised, unsupported
from slimtune.models.family import IGNORED_BUFFER
from slimtune.models.model_shape import gguf_tensor_name

_ROTATED = re.compile(r"attn_[qk]\.(weight|bias)$")
_BITSANDBYTES = re.compile(r"\.(SCB|absmax|quant_map|quant_state\..*|nested_absmax|weight_format)$")

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
        if name.endswith(IGNORED_BUFFER) or (architecture.shape.tied and name == "lm_head.weight"):
            continue
        target = gguf_name(architecture, name)
        if target is None:
            raise _unknown_tensor(folder, name)
        mapped[target] = name
    _require_shapes(folder, architecture, {t: shapes[name] for t, name in mapped.items()})
    return {target: mapped[target] for target in sorted(mapped, key=file_order)}


def gguf_name(architecture: Architecture, name: str) -> str | None:
    """llama.cpp's name of a tensor, None for one it does not know."""
    return gguf_tensor_name(architecture.shape, name)


def row_order(architecture: Architecture, name: str) -> np.ndarray | None:
    """Order of a head's rows in the file, for q and k of an interleaved family; else None.

    Hugging Face rotates value i with i + d/2, as llama.cpp does for Qwen2; for Llama it rotates
    neighbours 2i and 2i+1: row 2i+j of the file is row i + j·d/2 of the head.
    """
    family, head_dim = architecture.shape.family, architecture.shape.head_dim
    if family.rotary != "interleaved" or not _ROTATED.search(name):
        return None
    return np.arange(head_dim).reshape(2, -1).T.reshape(-1)


def file_order(name: str) -> tuple[int, bytes]:
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    return layer, name.encode()


def _require_shapes(
    folder: Path, architecture: Architecture, shapes: dict[str, TensorShape]
) -> None:
    shape = architecture.shape
    expected = {gguf_tensor_name(shape, name): size for name, size in shape.tensors.items()}
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} tensors missing, first {missing[0]}",
            f"config.json promises {shape.layers} layers"
            + ("" if shape.tied else " and an output matrix (tie_word_embeddings is false)"),
            "run the stage that wrote this folder again, or copy the missing shards",
        )
    for name, size in shapes.items():
        weight = expected.get(name.removesuffix(".bias") + ".weight", ())
        wanted = expected.get(name, weight[:1] if name.endswith(".bias") else None)
        if size != wanted:
            raise InputError(
                f"{folder}: {name} has the shape {size}",
                f"config.json asks for {wanted or 'no such tensor'}",
                "config and weights belong to different models; take both from one folder",
            )


def _unknown_tensor(folder: Path, name: str) -> InputError:
    return unsupported(folder, f"it holds {name}, which this family does not have")
