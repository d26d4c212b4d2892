"""What fine-tuning forgets, what replayed rows win back, and what asking costs.

    python benchmarks/forgetting.py                             # the sample model and its rows
    python benchmarks/forgetting.py --shares 0,0.1,0.3 --epochs 1
    python benchmarks/forgetting.py --base FOLDER --rows FILE   # a real model, NAME_train.jsonl

An adapter for each share of general rows, all else alike, by the scripts themselves; then all of
them beside the base in one comparison, and the same comparison without general questions: CPU
seconds of both. `--folder` keeps what is made; what has finished there is not made again.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import FINETUNE, ROOT, machine, measure, table

HEADERS = ("model", "match %", "right", "lost", "gained", "points", "from", "to", "verdict", "text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", default="0,0.1", help="of general rows, an adapter each")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--base", type=Path, help="folder of a model; default: the sample's")
    parser.add_argument("--rows", type=Path, help="prepared training rows, test rows beside them")
    parser.add_argument("--folder", type=Path, help="keeps what is made; default: none does")
    options = parser.parse_args()
    print(machine())
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        show(options, options.folder.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        show(options, Path(folder))


def show(options: argparse.Namespace, folder: Path) -> None:
    shutil.copy(ROOT / "config.yaml", folder)
    if options.base is None and not (folder / "data/finetune/train_run.json").exists():
        run(folder, "create_sample_data")
        run(folder, "prepare_data")
    given = ["--base-model", options.base.resolve()] if options.base else []
    rows = ["--train-data", options.rows.resolve()] if options.rows else []
    adapters = []
    for share in options.shares.split(","):
        output = folder / "models" / f"replay-{share}"
        adapters.append(output / "lora_adapter")
        if not adapters[-1].exists():
            told = ["--replay", share, "--epochs", options.epochs, "--output-dir", output]
            run(folder, "train_lora", *given, *rows, *told)
    compared = ["--lora-model", "null", "--models", ",".join(map(str, adapters)), *given, *rows]
    seconds = {}
    for name, general in (("with", "auto"), ("without", "off")):
        output = folder / name / "results.csv"
        told = ["--general", general, "--output", output, "--overwrite"]
        seconds[name] = run(folder, "evaluate_model", *compared, *told)
    metrics = json.loads((folder / "with/results_metrics.json").read_text(encoding="utf-8"))
    told = metrics["forgotten"]
    title = f"{told['items']} general questions ({told['set']}), text: perplexity"
    table(
        title,
        HEADERS,
        [line(*pair) for pair in zip(metrics["models"], told["models"], strict=True)],
    )
    spent = "comparison: {with:.0f} CPU s, without general questions {without:.0f}"
    print(spent.format(**seconds))


def line(measured: dict[str, Any], told: dict[str, Any]) -> list[Any]:
    """The cells of one model; dashes for the base, which has lost nothing to itself."""
    judged = [told[name] for name in ("points", "low", "high", "verdict")]
    text = told["text"] and told["text"]["perplexity"]
    cells = [told["label"], measured["exact_match"]["score"], told["right"], told["lost"]]
    return ["–" if one is None else one for one in [*cells, told["gained"], *judged, text]]


def run(folder: Path, script: str, *words: object) -> float:
    """CPU seconds of a script with these words; RuntimeError with its last words where it fails."""
    command = [sys.executable, FINETUNE / f"{script}.py", "--config", folder / "config.yaml"]
    return measure([*command, *map(str, words)]).cpu


if __name__ == "__main__":
    main()
