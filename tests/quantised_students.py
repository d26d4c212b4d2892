"""A model that has learned a page by heart, for students that learn through a file's types."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from taught_llama import PAGE

from slimtune.config import Config
from slimtune.quantised.student_file import planned


def write_world(taught: Path, folder: Path) -> Path:
    """The model, rows of its page, and the page."""
    shutil.copytree(taught, folder / "model")
    lines = PAGE.splitlines()
    rows = [
        {
            "messages": [
                {"role": "user", "content": line[:20]},
                {"role": "assistant", "content": line[20:60]},
            ]
        }
        for line in lines * 4
    ]
    for name, some in (("train", rows[:20]), ("validation", rows[-6:])):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"rows_{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "page.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def stored(folder: Path, file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """GGUF name -> (what the file decodes to, the weights of the folder, in the file's order)."""
    weights = load_file(folder / "model.safetensors")
    plan = planned(quantised("Q4_K_M"), str(folder), "small")
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        own = weights[plan.source[tensor.name]]
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):  # 8 values a head
            own = own.reshape(-1, 2, 4, own.shape[1]).swapaxes(1, 2).reshape(own.shape)
        found[tensor.name] = decoded.reshape(own.shape), own
    return found


def quantised(wanted: str | int) -> Config:
    settings = Config().distillation.model_copy(update={"quantised_student": wanted})
    return Config().model_copy(update={"distillation": settings})
