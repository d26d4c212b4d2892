"""What `train_lora.py --dry-run` predicts as the peak of memory, beside what the run then takes.

    python benchmarks/dry_run.py            # three sizes, float32 on a CPU
    python benchmarks/dry_run.py --small    # the smallest alone

Both columns come from the script itself, in processes of their own: the prediction from the
lengths of the rows and the shapes in config.json, the measurement from the resident pages.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from measuring import FINETUNE, machine, measure, table
from training import SIZES, Size, prepare

SCRIPT = FINETUNE / "train_lora.py"
BAR = 0.15
LARGE = Size("270 M", 1024, 2816, 16, 16)
VARIANTS = {
    "plain": (),
    "activation checkpointing": ("--activation-checkpointing",),
    "nf4": ("--use-quantization",),
    "full": ("--method", "full", "--learning-rate", "1e-4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the smallest size alone")
    parser.add_argument("--variants", default="plain", help=f"of {', '.join(VARIANTS)}, or all")
    options = parser.parse_args()
    names = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    print(machine())
    headers = ["model", "run", "predicted MB", "measured MB", "off by", "bar"]
    for size in SIZES[:1] if options.small else (*SIZES, LARGE):
        with tempfile.TemporaryDirectory() as folder:
            prepare(size, 8 if size is LARGE else 48, Path(folder))
            lines = [_line(size, name, Path(folder)) for name in names]
        table(f"peak memory of train_lora.py, {size.name}, batch 4", headers, lines)


def _line(size: Size, name: str, folder: Path) -> list[str | float]:
    words = [
        *(sys.executable, SCRIPT, "--base-model", folder / "model", "--batch-size", "4"),
        *("--train-data", folder / "prepared.jsonl", "--output-dir", folder / name),
        *("--epochs", "1", "--learning-rate", "1e-3", "--device", "cpu", *VARIANTS[name]),
    ]
    said = measure([*words, "--dry-run"]).output
    predicted = float(re.search(r"memory: about ([\d.]+) GB", said)[1]) * 1000
    measured = measure(words).megabytes
    off = predicted / measured - 1
    return [size.name, name, predicted, measured, f"{off:+.1%}", f"<= {BAR:.0%}"]


if __name__ == "__main__":
    main()
