"""LoRA with the base left in its files, beside the same training with the base in memory.

    python benchmarks/streamed.py                    # TinyLlama's shape: 1.1 B in bfloat16
    python benchmarks/streamed.py --small            # a 60 M shape, for a quick try
    python benchmarks/streamed.py --shape 7b --sides streamed --steps 1   # 14 GB of free disk
    python benchmarks/streamed.py --layers 6 --step-tokens 1024   # six of 22 layers
    python benchmarks/streamed.py --tokens 256       # smaller batches: less memory, more reading

The weights are random, and so are the rows: each `--tokens` long and learned at every position,
one a batch, accumulated to `--step-tokens` for one update; r = 8 on all linear layers, one thread;
every side is a process of its own. "CPU s a step" is that of the updates after the first, or of the
first where it is the only one. Losses must be the same to the bit, and so must what was learned.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from low_memory import SHAPES, write_model
from measuring import Cost, machine, measure, table

SIDE = Path(__file__).with_name("streamed_side.py")
TITLES = {
    "resident": "in memory",
    "checkpointed": "in memory, activations checkpointed",
    "streamed": "streamed",
}
BARS = {"1b": 900, "7b": 2500}  # MB
MORE_CPU = 1.35  # times the CPU of the resident run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--small", action="store_true", help="the small shape")
    parser.add_argument("--layers", type=int, help="of the shape, in place of all")
    parser.add_argument("--sides", default=",".join(TITLES))
    parser.add_argument("--tokens", type=int, default=512, help="of a row, and of a batch")
    parser.add_argument("--step-tokens", type=int, default=4096, help="of one update")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--folder", help="where to write the model (default: the system's own)")
    parser.add_argument("--model", type=Path, help="a model folder that is there already")
    options = parser.parse_args()
    print(machine(("torch", "transformers", "peft")))
    name = "small" if options.small else options.shape
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = options.model or Path(folder) / "model"
        if not model.is_dir():
            hidden, layers, *rest = SHAPES[name]
            write_model(model, hidden, options.layers or layers, *rest)
        costs = {side: _measured(side, model, options) for side in options.sides.split(",")}
    _show(name, costs, options)


def _measured(side: str, model: Path, options: argparse.Namespace) -> Cost:
    given = [options.tokens, options.step_tokens // options.tokens, options.steps, options.dtype]
    return measure([sys.executable, SIDE, side, model, *map(str, given)])


def _show(name: str, costs: dict[str, Cost], options: argparse.Namespace) -> None:
    rows = []
    for side, cost in costs.items():
        found = cost.results
        ratios = [
            f"{found['cpu'] / costs[other].results['cpu']:.2f}x" if other in costs else "-"
            for other in ("resident", "checkpointed")
        ]
        rows.append(
            [TITLES[side], cost.megabytes, found["peak"] / 1e6, found["cpu"], *ratios]
            + [found["wall"], found["read"] / 1e9, f"{found['losses'][-1]:.9f}", found["learned"]]
        )
    headers = ["side", "peak MB", "training MB", "CPU s a step", "of in memory"]
    headers += ["of checkpointed", "s a step", "GB read a step", "last loss", "adapter's SHA-256"]
    step = f"{options.step_tokens:,} tokens a step, {options.tokens} a batch"
    table(f"{name}: {step}, {options.steps} steps, {options.dtype}", headers, rows)
    if len(costs) > 1:
        told = {(*cost.results["losses"], cost.results["learned"]) for cost in costs.values()}
        print("losses and adapters: " + ("the same bits" if len(told) == 1 else "DIFFERENT"))
    if name in BARS and not options.layers and "streamed" in costs:
        peak = costs["streamed"].megabytes
        print(f"memory: {peak:,.0f} of {BARS[name]} MB: {_met(peak <= BARS[name])}")
    if {"resident", "streamed"} <= costs.keys():
        ratio = costs["streamed"].results["cpu"] / costs["resident"].results["cpu"]
        print(f"CPU: {ratio:.2f} of {MORE_CPU}: {_met(ratio <= MORE_CPU)}")


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


if __name__ == "__main__":
    main()
