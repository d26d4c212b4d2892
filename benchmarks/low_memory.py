"""How much memory pruning takes, against loading and saving the model with transformers.

    python benchmarks/low_memory.py                # TinyLlama's shape: 1.1 B, written here, bf16
    python benchmarks/low_memory.py --small        # a 60 M shape, for a quick try
    python benchmarks/low_memory.py --shape 7b     # Llama-2-7B's shape: needs 20 GB of free disk

The weights are random; every side is a process of its own. A quarter of FFN neurons and of heads
goes. "refit" cuts by activation, reading 16 rows of 64 tokens, and solves again for what is left.
"malloc left alone" is the same cut by magnitude without the trick that gives large blocks back.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import FINETUNE, machine, measure, table

sys.path.insert(0, str(FINETUNE))
SHAPES = {  # hidden, layers, heads, KV groups, FFN, vocabulary
    "small": (512, 8, 8, 4, 1536, 32000),
    "1b": (2048, 22, 32, 4, 5632, 32000),
    "7b": (4096, 32, 32, 32, 11008, 32000),
}
BARS = {"1b": {"magnitude": 450, "refit": 1500}, "7b": {"magnitude": 700}}
SHARD = 1_000_000_000
FREE = {"small": 1e9, "1b": 5e9, "7b": 20e9}
_CUT = """
import sys, pathlib, torch
from slimtune.models.weights import Checkpoint
from slimtune.pruning.anatomy import prunable_shape
from slimtune.pruning.sizes import Ratios, smaller
from slimtune.pruning.width import cut_width
source, output, calibrated = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
shape = smaller(prunable_shape(Checkpoint(source)), Ratios(ffn=0.25, groups=0.25))
options = {"criterion": "magnitude"}
if calibrated:
    from slimtune.inference.stack import batches_of
    rows = torch.randint(shape.vocabulary, (16, 64), generator=torch.Generator().manual_seed(0))
    options = {"criterion": "activation", "batches": batches_of(rows.tolist())}
cut_width(source, output, shape, scratch=output.with_name("scratch"), **options)
"""
_PEER = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.save_pretrained(sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--small", action="store_true", help="the small shape")
    parser.add_argument("--folder", help="where to write the model (default: the system's own)")
    options = parser.parse_args()
    name = "small" if options.small else options.shape
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        free = shutil.disk_usage(folder).free
        if free < FREE[name]:
            sys.exit(f"{folder}: {free / 1e9:.0f} GB free, {FREE[name] / 1e9:.0f} GB are needed")
        run(name, Path(folder))


def run(name: str, folder: Path) -> None:
    """Writes the model, measures each side, prints the table."""
    print(machine())
    write_model(folder / "model", *SHAPES[name])
    sides = {
        "prune by magnitude": (_CUT, [], "magnitude"),
        "the same, malloc left alone": (_CUT, [], "untouched malloc"),
        "prune by activation + refit": (_CUT, ["calibrated"], "refit"),
        "from_pretrained + save_pretrained": (_PEER, [], "peer"),
    }
    if name == "7b":  # the others need more memory or time than a modest machine has
        sides = {title: side for title, side in sides.items() if "magnitude" in title}
    rows = []
    for title, (code, more, side) in sides.items():
        output = folder / "out"
        off = "malloc" if side == "untouched malloc" else ""
        command = [sys.executable, "-c", code, folder / "model", output, *more]
        cost = measure(command, environment={"SLIMTUNE_TRICKS_OFF": off})
        bar = BARS.get(name, {}).get(side)
        said = "" if bar is None else f"{bar} MB: {'met' if cost.megabytes <= bar else 'MISSED'}"
        rows.append((title, cost.megabytes, cost.cpu, said))
        shutil.rmtree(output)
    disk = sum(file.stat().st_size for file in (folder / "model").iterdir()) / 1e9
    table(f"{name}: {disk:.2f} GB on disk", ("side", "peak MB", "CPU s", "bar"), rows)


def write_model(
    folder: Path, hidden: int, layers: int, heads: int, groups: int, ffn: int, vocabulary: int
) -> None:
    """A random Llama in bf16 shards of 1 GB, written a few rows at a time."""
    import torch

    from slimtune.models.model_shape import ModelShape
    from slimtune.models.weights import CheckpointWriter

    shape = ModelShape(
        vocabulary, hidden, ffn, layers, heads, groups, hidden // heads, False, frozenset()
    )
    spec = {name: (torch.bfloat16, size) for name, size in shape.tensors.items()}
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(folder, spec, shard_bytes=SHARD) as writer:
        for name, (dtype, size) in spec.items():
            if len(size) == 1:
                writer.write(name, torch.ones(size, dtype=dtype))
                continue
            for start in range(0, size[0], 1024):
                rows = torch.randn(min(1024, size[0] - start), size[1], generator=generator)
                writer.write(name, (rows * 0.02).to(dtype), start)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
