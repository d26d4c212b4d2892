"""On a GPU at Llama-2-7B's real shape: what fits into 8 and 16 GB, how fast, and as predicted?

    python benchmarks/gpu.py --folder /tmp/gpu --parts qlora     # each part: under ten minutes
    python benchmarks/gpu.py                                     # all of them, one after another
    python benchmarks/gpu.py --small                             # a tiny shape, also without a GPU

The model is random, in bfloat16, written here shard by shard (13.5 GB; --folder keeps it for the
next part), with the Llama-2 tokenizer; the rows are Alpaca's. Memory and speed do not depend on the
values. Every line is a process of its own; `predicted` is what the same command said to --dry-run.
The card must be idle otherwise. Exit code 1: a line failed, the others are still there.

qlora       train_lora.py on nf4 weights, the process held to a card of 8 GB
lora        train_lora.py on 16-bit weights, the process held to a card of 16 GB
trainer     our trainer, the padded Trainer and TRL (its python named by TRL_PYTHON)
pruning     model_pruning.py --criterion activation with refit, to 5 B parameters; on the CPU
distil      knowledge_distillation.py into what `pruning` left: the teacher cached, a LoRA student
generation  evaluation's batches and a plain loop over `generate`
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_table import CARD, GB, RESIDENT, Memory, Table, gigabytes, judged, losses, peak, prediction
from gpu_world import SIZES, TOKENIZER, World
from measuring import Cost, machine, measure

SIDES = Path(__file__).with_name("gpu_sides.py")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
GIB = 1 << 30  # a card of 8 GB has 8 of these
# Ours must be that much faster: seconds of the other trainer by ours.
TRAINERS = {"ours": 0.0, "padded": 1.5, "trl": 1.0}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--small", action="store_true", help="a tiny shape, on a GPU or a CPU")
    parser.add_argument("--folder", type=Path, help="keep model and outputs here for later parts")
    options = parser.parse_args(words)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    card = _card()
    if card is None and not options.small:
        sys.exit("no GPU here: nothing is measured; --small tries the script on a CPU")
    if not TOKENIZER.is_file():
        sys.exit(f"{TOKENIZER} is not here: this benchmark needs the shared data")
    print(f"{date.today()}, {card or 'no GPU: a try of the script, not a measurement'}")
    print(machine([name for name in PACKAGES if find_spec(name)]), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        threads = 1 if options.small else os.cpu_count()
        size = SIZES["small" if options.small else "7b"]
        world = World(options.folder or Path(temporary), size, CARD if card else RESIDENT, threads)
        world.write()
        failures = sum(PARTS[part](world).failures for part in parts)
    sys.exit(1 if failures else 0)


def _card() -> str | None:
    """Name, driver and memory of the GPU that torch sees, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    name, driver, total = said.splitlines()[0].split(", ")
    return f"{name}, {total}, driver {driver}"


def qlora(world: World) -> Table:
    return _training(world, "QLoRA, nf4", 8 * GIB, "--use-quantization")


def lora(world: World) -> Table:
    return _training(world, "LoRA, 16-bit weights on a GPU", 16 * GIB)


def _training(world: World, title: str, cap: int, *words: str) -> Table:
    held = f"held to {cap / GB:.2f} GB" if world.memory is CARD else "on the CPU"
    table = Table(f"{title}, rows of {world.size.length} tokens, {held}", _headers(world.memory))
    for batch in world.size.batches:
        command = training_command(world, batch, *words)
        cost = _script(world, "train_lora", command, cap)
        label = f"{batch} rows x {world.size.update // batch}"
        table.add(label, cost, lambda cost: _figures(world.memory, cost))
    return table


def training_command(world: World, batch: int, *words: str) -> list[Any]:
    """QUICK_START's settings for Llama-2-7B, `batch` rows a step and as many an update as there."""
    return [
        *("--base-model", world.model, "--train-data", world.full_rows, "--overwrite"),
        *("--output-dir", world.folder / f"trained{batch}", "--epochs", 1),
        *("--lora-r", 8, "--lora-target-modules", "all-linear", "--learning-rate", "2e-4"),
        *("--batch-size", batch, "--gradient-accumulation-steps", world.size.update // batch),
        *("--max-length", world.size.length, "--activation-checkpointing"),
        *("--max-truncated-share", 1, *words),
    ]


def trainer(world: World) -> Table:
    columns = ["tokens/s", "ours is faster", *world.memory, "ours of its peak"]
    title = "LoRA without checkpointing, 16-bit weights on a GPU: trainers on the same rows"
    table = Table(title, ["trainer", *columns, "mean loss", "step losses off by"])
    pythons = dict.fromkeys(TRAINERS, sys.executable) | {"trl": os.environ.get("TRL_PYTHON")}
    costs = {side: _side(world, side, python) for side, python in pythons.items() if python}
    for side, cost in costs.items():
        table.add(side, cost, lambda cost, side=side: _trained(world, cost, side, costs["ours"]))
    if "trl" not in costs:
        print("\nTRL is not installed here, or TRL_PYTHON does not name its python.")
    return table


def _trained(world: World, cost: Cost, side: str, ours: Cost) -> list[str]:
    found, faster, smaller, off = cost.results, "-", "-", "-"
    if side != "ours" and ours.returncode == 0:
        times, bar = found["seconds"] / ours.results["seconds"], TRAINERS[side]
        faster = judged(f"{times:.2f}x", f"{bar}x", times >= bar)
        share = peak(world.memory, ours) / peak(world.memory, cost)
        smaller = judged(f"{share:.2f}", "below 1", share < 1)
        off = losses(found["losses"], ours.results["losses"])
    mean = sum(found["losses"]) / len(found["losses"])
    return [_speed(cost), faster, *gigabytes(world.memory, cost), smaller, f"{mean:.4f}", off]


def pruning(world: World) -> Table:
    rows = world.size.calibration_rows
    title = f"Pruning to {world.size.target} parameters, on the CPU"
    table = Table(title, _headers(RESIDENT))
    words = ("--criterion", "activation", "--calibration-rows", rows)
    _prune(world, table, f"activation, refit, {rows} rows", *words)
    return table


def _prune(world: World, table: Table, label: str, *words: Any) -> None:
    command = [
        *("--model-path", world.model, "--output-dir", world.student, "--train-data", world.rows),
        *("--target-params", world.size.target, *words),
    ]
    shutil.rmtree(world.student, ignore_errors=True)
    cost = _script(world, "model_pruning", command)
    table.add(label, cost, lambda cost: _figures(RESIDENT, cost))


def distil(world: World) -> Table:
    if not (world.student / "run.json").is_file():
        table = Table("A student for distillation", _headers(RESIDENT))
        words = ("--criterion", "magnitude", "--calibration", "none")
        _prune(world, table, "cut by magnitude", *words)
        if table.failures:
            return table
    title = f"Distillation into {world.size.target} parameters, LoRA student"
    table = Table(title, _headers(world.memory))
    shutil.rmtree(world.folder / "cache", ignore_errors=True)
    lines = {"teacher asked": ("teacher", "memory"), "teacher cached already": ("memory",)}
    for label, stages in lines.items():
        cost = _script(world, "knowledge_distillation", _distillation_command(world))
        table.add(label, cost, lambda cost, stages=stages: _figures(world.memory, cost, stages))
        shutil.rmtree(world.folder / "distilled", ignore_errors=True)
    return table


def _distillation_command(world: World) -> list[Any]:
    return [
        *("--teacher-model", world.model, "--student-model", world.student, "--text-data", "null"),
        *("--train-data", world.full_rows, "--output-dir", world.folder / "distilled"),
        *("--cache-dir", world.folder / "cache", "--overwrite", "--student", "lora"),
        *("--batch-size", 1, "--gradient-accumulation-steps", world.size.update, "--epochs", 1),
        *("--max-length", world.size.length, "--activation-checkpointing"),
        *("--max-truncated-share", 1, "--learning-rate", "1e-3"),
    ]


def generation(world: World) -> Table:
    table = Table("Greedy answers, 16-bit weights on a GPU", ["", "new tokens/s", *world.memory])
    for side in ("batched", "plain"):
        cost = _side(world, side, sys.executable)
        table.add(side, cost, lambda cost: [_speed(cost), *gigabytes(world.memory, cost)])
    return table


PARTS: dict[str, Callable[[World], Table]] = {
    part.__name__: part for part in (qlora, lora, trainer, pruning, distil, generation)
}


def _headers(memory: Memory) -> list[str]:
    return ["", "tokens/s", *memory, "predicted GB", "off by", "minutes"]


def _figures(memory: Memory, cost: Cost, stages: Sequence[str] = ("memory",)) -> list[str]:
    predicted = prediction(memory, cost, stages)
    minutes = cost.results["seconds"] / 60
    return [_speed(cost), *gigabytes(memory, cost), *predicted, f"{minutes:.2f}"]


def _speed(cost: Cost) -> str:
    """Tokens a second, `-` for what counts none."""
    return f"{cost.results['speed']:,.0f}" if "speed" in cost.results else "-"


def _script(world: World, script: str, words: Sequence[Any], cap: int = 0) -> Cost:
    """The script --dry-run, then in earnest, in a process of its own that holds `cap` bytes."""
    command = [sys.executable, SIDES, "script", script, cap, *words]
    return measure(command, check=False, threads=world.threads)


def _side(world: World, side: str, python: str) -> Cost:
    command = [python, SIDES, side, world.model, world.rows, world.size.length]
    return measure(command, check=False, threads=world.threads)


if __name__ == "__main__":
    main()
