"""On a GPU at Llama-2-7B's real shape: what fits into 8 and 16 GB, how fast, and as predicted?

    python benchmarks/gpu.py                            # all parts, one after another
    python benchmarks/gpu.py --parts qlora,lora         # each part takes less than ten minutes
    python benchmarks/gpu.py --small                    # a tiny shape, also without a GPU

The model is random, in bfloat16, written here shard by shard, with the Llama-2 tokenizer; rows are
real Alpaca rows, cut to 512 tokens. Memory and speed do not depend on the values. Every line is a
process of its own that runs the real script; `predicted` is what its --dry-run said before.

qlora       train_lora.py on nf4 weights, the process held to 8 GB, 1, 2 and 4 rows a step
lora        train_lora.py on 16-bit weights, the process held to 16 GB
trainer     our trainer, the padded Trainer and TRL (its python named by TRL_PYTHON)
pruning     model_pruning.py --criterion activation with refit, to 5 B parameters
distil      knowledge_distillation.py: the teacher's answers cached, then a LoRA student
generation  evaluation's batches and a plain loop over `generate`
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export_models import SHAPES, Shape, write_model
from measuring import FINETUNE, SHARED_DATA, Cost, machine, measure, table

SIDES = Path(__file__).with_name("gpu_sides.py")
TOKENIZER = SHARED_DATA / "llama2-tokenizer" / "tokenizer.model"
ROWS = SHARED_DATA / "instruct" / "alpaca_en_demo.json"
LENGTH, ROWS_AN_UPDATE, UPDATES = 512, 4, 6
GB = 10**9
FASTER_BAR, PREDICTION_BAR = 1.5, 0.15
NEEDED_DISK = {"7b": 30 * GB, "small": GB}


@dataclass(frozen=True)
class World:
    """Where model and rows lie, and how small the run is."""

    folder: Path
    shape: Shape
    small: bool

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--small", action="store_true", help="a tiny shape, on a GPU or a CPU")
    parser.add_argument("--folder", type=Path, help="keep model and outputs here for later parts")
    options = parser.parse_args()
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    card = _card()
    if card is None and not options.small:
        sys.exit("no GPU here: nothing is measured; --small tries the script on a CPU")
    if not TOKENIZER.is_file():
        sys.exit(f"{TOKENIZER} is not here: this benchmark needs the shared data")
    print(machine(), card or "no GPU: a try of the script, not a measurement", sep="\n")
    with tempfile.TemporaryDirectory() as temporary:
        world = _world(options.folder or Path(temporary), options.small)
        for part in options.parts.split(","):
            PARTS[part](world)


def qlora(world: World) -> None:
    _training(world, "QLoRA, nf4, r = 8 on all linear layers", 8 * GB, ("--use-quantization",))


def lora(world: World) -> None:
    _training(world, "LoRA, 16 bits, r = 8 on all linear layers", 16 * GB, ("--dtype", "bfloat16"))


def _training(world: World, title: str, cap: int, words: Sequence[str]) -> None:
    lines = []
    for batch in (1, 2, 4):
        command = [
            *("--base-model", world.model, "--train-data", world.rows, "--output-dir"),
            *(world.folder / f"trained{batch}", "--overwrite", "--epochs", 1, "--lora-r", 8),
            *("--batch-size", batch, "--gradient-accumulation-steps", ROWS_AN_UPDATE // batch),
            *("--max-length", LENGTH, "--max-truncated-share", 1, "--activation-checkpointing"),
            *("--learning-rate", "1e-4", *words),
        ]
        predicted = _predicted("train_lora", command)
        cost = _script("train_lora", command, cap)
        lines.append([f"{batch} x {ROWS_AN_UPDATE // batch} rows", *_figures(cost, predicted)])
    table(f"{title}, {LENGTH} tokens, held to {cap / GB:.0f} GB", _HEADERS, lines)


def pruning(world: World) -> None:
    """The student that `distil` teaches is what this part leaves."""
    _, command = _pruned(world)
    cost = _script("model_pruning", command)
    line = ["activation + refit", *_figures(cost, None)]
    table(f"Pruning {world.shape.name}", _HEADERS, [line])


def _pruned(world: World) -> tuple[Path, list[Any]]:
    folder = world.folder / "pruned"
    target = "3.2M" if world.small else "5e9"
    return folder, [
        *("--model-path", world.model, "--output-dir", folder, "--train-data", world.rows),
        *("--target-params", target, "--criterion", "activation", "--overwrite"),
        *("--calibration-rows", 16 if world.small else 128),
    ]


def distil(world: World) -> None:
    student, pruning_command = _pruned(world)
    if not (student / "run.json").is_file():
        _script("model_pruning", pruning_command)
    command = [
        *("--teacher-model", world.model, "--student-model", student, "--text-data", "null"),
        *("--train-data", world.rows, "--output-dir", world.folder / "distilled", "--overwrite"),
        *("--cache-dir", world.folder / "cache", "--student", "lora", "--batch-size", 1),
        *("--gradient-accumulation-steps", ROWS_AN_UPDATE, "--epochs", 1),
        *("--max-length", LENGTH, "--max-truncated-share", 1, "--activation-checkpointing"),
        *("--learning-rate", "1e-5"),
    ]
    predicted = _predicted("knowledge_distillation", command)
    first = _script("knowledge_distillation", command, ok=(0, 5))
    again = _script("knowledge_distillation", command, ok=(0, 5))
    lines = [
        ["teacher asked, student taught", *_figures(first, predicted)],
        ["teacher cached already", *_figures(again, predicted)],
    ]
    table(f"Distillation of {world.shape.name} into 5 B, LoRA student", _HEADERS, lines)


def trainer(world: World) -> None:
    pythons = {
        "ours": sys.executable,
        "padded": sys.executable,
        "trl": os.environ.get("TRL_PYTHON"),
    }
    costs = {
        side: measure([python, SIDES, side, world.model, world.rows])
        for side, python in pythons.items()
        if python
    }
    ours = costs["ours"].results
    lines = [
        [
            side,
            cost.results["tokens"] / cost.results["seconds"],
            f"{cost.results['seconds'] / ours['seconds']:.2f}x",
            _gigabytes(_peak(cost)),
            f"{cost.results['loss']:.4f}",
        ]
        for side, cost in costs.items()
    ]
    headers = ["trainer", "tokens/s", "seconds by ours", "peak GB", "mean loss"]
    table(f"LoRA, 16 bits, same rows (bar: padded >= {FASTER_BAR}x, TRL >= 1x)", headers, lines)
    if "trl" not in costs:
        print("TRL is not installed here: name its python in TRL_PYTHON")


def generation(world: World) -> None:
    sides = ("batched", "plain")
    costs = {
        side: measure([sys.executable, SIDES, side, world.model, world.rows]) for side in sides
    }
    lines = [
        [side, cost.results["tokens"] / cost.results["seconds"], _gigabytes(_peak(cost))]
        for side, cost in costs.items()
    ]
    table("Greedy answers, 16 bits", ["side", "new tokens/s", "peak GB"], lines)


PARTS: dict[str, Callable[[World], None]] = {
    part.__name__: part for part in (qlora, lora, trainer, pruning, distil, generation)
}

_HEADERS = ["", "tokens/s", "allocated GB", "reserved GB", "predicted GB", "off by", "seconds"]


def _figures(cost: Cost, predicted: float | None) -> list[Any]:
    found = cost.results
    peak = _peak(cost)
    off = f"{predicted / peak - 1:+.0%} (bar {PREDICTION_BAR:.0%})" if predicted else "-"
    return [
        found.get("tokens_per_second") or "-",
        _gigabytes(found.get("allocated", 0)),
        _gigabytes(found.get("reserved", 0)),
        _gigabytes(predicted or 0),
        off,
        found["seconds"],
    ]


def _peak(cost: Cost) -> int:
    """Bytes reserved on the GPU; without one, resident in memory."""
    return cost.results.get("reserved") or cost.peak


def _gigabytes(size: float) -> str:
    return f"{size / GB:.2f}" if size else "-"


def _script(script: str, words: Sequence[Any], cap: int = 0, ok: Sequence[int] = (0,)) -> Cost:
    """A real script in a process of its own that reports the GPU's peak."""
    cost = measure([sys.executable, SIDES, "script", script, cap, *words], check=False, threads=2)
    if cost.returncode not in ok:
        sys.exit(f"{script} exited with {cost.returncode}:\n{cost.output[-3000:]}")
    return cost


def _predicted(script: str, words: Sequence[Any]) -> float:
    said = measure([sys.executable, FINETUNE / f"{script}.py", *words, "--dry-run"]).output
    return float(re.search(r"memory: about ([\d.]+) GB", said)[1]) * GB


def _world(folder: Path, small: bool) -> World:
    name = "small" if small else "7b"
    folder.mkdir(parents=True, exist_ok=True)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < NEEDED_DISK[name]:
        sys.exit(f"{folder}: {free / GB:.0f} GB free, {NEEDED_DISK[name] / GB:.0f} GB needed")
    world = World(folder, SHAPES[name], small)
    write_model(world.model, world.shape, TOKENIZER)
    _write_rows(world.rows, ROWS_AN_UPDATE * (2 if small else UPDATES))
    return world


def _write_rows(file: Path, count: int) -> None:
    """The longest Alpaca rows that keep their answer within LENGTH tokens."""
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    rows.sort(key=lambda row: -len(row["output"]))
    chosen = [row for row in rows if len(row["output"]) < 3 * LENGTH][:count]
    lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _card() -> str | None:
    """Name, driver and memory of the GPU, None without one."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
