"""What llama.cpp's own tools make of two models: one digest of all tensors for each type.

    LLAMA_CPP_DIR=llama.cpp PYTHONPATH=finetune python tests/recorded_tensors.py   # records again

`stories260K` is ../shared/data's real model: rows of 64 and 172, so K-quants fall back. `wide` is
made of whole numbers, the same everywhere: rows of 256 and 8 layers, so that every rule for "the
first eighth" has a layer to apply to. `wide+imatrix` is quantised with an importance matrix.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import SHARED, write_tiny_llama

from slimtune.export.imatrix import write_imatrix

FILE = Path(__file__).with_name("recorded_tensors.json")
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_NAMES = [*_PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M",
          "Q6_K"]  # fmt: skip


def digest(file: Path) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, by name.

    The converter keeps the checkpoint's order, llama-quantize sorts: ours is always the latter's.
    """
    total = hashlib.sha256()
    for tensor in sorted(gguf.GGUFReader(file).tensors, key=lambda tensor: tensor.name):
        total.update(f"{tensor.name} {tensor.tensor_type.name} {list(tensor.shape)}\n".encode())
        total.update(tensor.data.tobytes())
    return total.hexdigest()


def write_wide(folder: Path) -> Path:
    """A Llama in bf16 whose weights are whole numbers / 4096 from a fixed generator."""
    write_tiny_llama(folder, intermediate_size=256, num_hidden_layers=8)
    numbers = np.random.Generator(np.random.PCG64(1))
    state = {
        name: torch.from_numpy(numbers.integers(-255, 256, tuple(old.shape))).to(torch.bfloat16)
        / 4096
        for name, old in sorted(load_file(folder / "model.safetensors").items())
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_wide_imatrix(file: Path, columns: int = 256) -> Path:
    """Importance of every layer's matrices, whole numbers again."""
    numbers = np.random.Generator(np.random.PCG64(2))
    short = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    names = [f"blk.{layer}.{name}.weight" for layer in range(8) for name in short]
    sums = {name: numbers.integers(1, 999, columns).astype(np.float32) for name in names}
    write_imatrix(file, sums, dict.fromkeys(names, 512), "numbers", 512)
    return file


def _record(model: Path, tools: Path, imatrix: Path | None = None) -> dict[str, str]:
    found = {}
    environment = os.environ | {"PYTHONPATH": str(tools / "gguf-py")}
    with TemporaryDirectory() as folder:
        for name in _NAMES:
            output = Path(folder) / f"{name}.gguf"
            if name in _PLAIN:
                convert = [sys.executable, tools / "convert_hf_to_gguf.py", model]
                command = [*convert, "--outfile", output, "--outtype", _PLAIN[name]]
            else:
                options = ["--imatrix", imatrix] if imatrix else []
                quantize = tools / "build" / "bin" / "llama-quantize"
                command = [quantize, *options, Path(folder) / "F16.gguf", output, name]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            found[name] = digest(output)
    return found


def main() -> None:
    tools = Path(os.environ["LLAMA_CPP_DIR"])
    with TemporaryDirectory() as folder:
        wide = write_wide(Path(folder) / "wide")
        imatrix = write_wide_imatrix(Path(folder) / "imatrix.gguf")
        found = {
            "stories260K": _record(SHARED / "stories260K", tools),
            "wide": _record(wide, tools),
            "wide+imatrix": _record(wide, tools, imatrix),
        }
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
