"""What `train_lora.py --dry-run` predicts as the peak of memory, beside what the run then takes.

    python benchmarks/dry_run.py            # three sizes, float32 on a CPU
    python benchmarks/dry_run.py --small    # the smallest alone
    python benchmarks/dry_run.py --variants all

Every row is as long as max_length, the case that the prediction is about. Both columns come from
the script itself, in processes of their own: the prediction from the shapes in config.json and the
lengths of the rows, the measurement from the resident pages of a run of a few steps.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from measuring import FINETUNE, machine, measure, table
from training import SIZES, Size, prepare

SCRIPT = FINETUNE / "train_lora.py"
BAR = 0.15
LARGE = Size("270 M", 1024, 2816, 16, 16)
BATCH, STEPS, LENGTH = 4, 3, 256
VARIANTS = {
    "lora": (),
    "checkpointing": ("--activation-checkpointing",),
    "nf4": ("--use-quantization",),
    "full": ("--method", "full"),
    "full, 8-bit": ("--method", "full", "--optimizer", "adamw_8bit"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the smallest size alone")
    parser.add_argument("--variants", default="lora", help=f"of {', '.join(VARIANTS)}, or all")
    options = parser.parse_args()
    names = list(VARIANTS) if options.variants == "all" else options.variants.split(",")
    print(machine())
    lines = []
    for size in SIZES[:1] if options.small else (*SIZES, LARGE):
        with tempfile.TemporaryDirectory() as folder:
            prepare(size, 1, Path(folder))
            _write_long_rows(Path(folder) / "long.jsonl")
            lines += [_line(size, name, Path(folder)) for name in names]
    headers = ["model", "run", "predicted MB", "measured MB", "off by", "bar"]
    table(f"peak memory of train_lora.py, {BATCH} rows of {LENGTH} tokens a step", headers, lines)


def _write_long_rows(file: Path) -> None:
    """Rows whose questions must be shortened: each is exactly max_length tokens long."""
    question = {"role": "user", "content": "Why is the sea salt, and the rain not? " * 60}
    answer = {"role": "assistant", "content": "Rain leaves the salt behind. " * 15}
    source = {"file": "long.jsonl", "line": 1}
    row = json.dumps({"messages": [question, answer], "source": source}) + "\n"
    file.write_text(row * BATCH * STEPS, encoding="utf-8")


def _line(size: Size, name: str, folder: Path) -> list[str | float]:
    words = [
        *(sys.executable, SCRIPT, "--base-model", folder / "model", "--device", "cpu"),
        *("--train-data", folder / "long.jsonl", "--output-dir", folder / name.split(",")[0]),
        *("--batch-size", BATCH, "--max-length", LENGTH, "--max-truncated-share", "1"),
        *("--epochs", "1", "--learning-rate", "1e-4", "--overwrite", *VARIANTS[name]),
    ]
    said = measure([*words, "--dry-run"]).output
    predicted = float(re.search(r"memory: about ([\d.]+) GB", said)[1]) * 1000
    measured = measure(words).megabytes
    off = predicted / measured - 1
    return [size.name, name, predicted, measured, f"{off:+.1%}", f"<= {BAR:.0%}"]


if __name__ == "__main__":
    main()
