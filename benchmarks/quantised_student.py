"""What training through a file's types wins: the same file before and after, by llama.cpp.

    python benchmarks/quantised_student.py                 # the sample model, the two with a bar
    python benchmarks/quantised_student.py --all           # both kinds of types at both sizes
    python benchmarks/quantised_student.py --rows 2560 --text 1280         # 240 steps

For the bytes of each mixture, in nats a token of KL divergence from the unrounded model (its 16
bits in a file of 32) over all tokens of rows that nobody read, by llama.cpp's logits of the written
files: llama.cpp's mixture as it is, and with an importance matrix; then the mixture's own types and
those by sensitivity (`convert_to_gguf.py --target-size`), each before training, with columns that
make up for each other, and after it (`knowledge_distillation.py --quantised-student`): all weights
together, and one layer after another (`--student layers`), both also measured by torch on rows kept
aside. CPU seconds and peak memory are the whole script's; the first to ask the teacher waits for
its answers as well. Rows and steps are few: the order of things is told.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measuring import FINETUNE, Cost, machine, measure, table
from size import run_side

sys.path.insert(0, str(FINETUNE))
MIXTURES = ("Q4_K_S", "Q4_K_M")
BARS = {("Q4_K_S", "mixture"): 0.0056, ("Q4_K_M", "sensitivity"): 0.0039}
STUDENTS = {"full": "whole", "layers": "layer by layer"}
EPOCHS = {"full": "1", "layers": "2"}  # 58 steps, and 56 updates of each layer
COSTS = ("bytes", "updates", "bytes changed", "before, by torch", "after", "CPU s", "MB")
_PASSAGES = "raw/sample_text.txt"


@dataclass(frozen=True)
class Trained:
    """A student as the script makes it: its file, the metrics of its run, and what that cost."""

    file: Path
    metrics: dict[str, Any]
    cost: Cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="those without a bar as well")
    parser.add_argument("--rows", type=int, default=640, help="training rows")
    parser.add_argument("--text", type=int, default=320, help="passages of the sample's text")
    parser.add_argument("--rate", default="auto", help="learning rate")
    parser.add_argument("--folder", type=Path, help="where to work; kept, for another run")
    parser.add_argument("--begin", nargs=2, metavar=("FOLDER", "MIXTURE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begin:
        return begin(Path(options.begin[0]), options.begin[1])
    print(machine(("torch", "transformers", "gguf", "xllamacpp")))
    with tempfile.TemporaryDirectory() as temporary:
        show((options.folder or Path(temporary)) / "sample", options)


def show(folder: Path, options: argparse.Namespace) -> None:
    """The table, and what each training took."""
    folder.mkdir(parents=True, exist_ok=True)
    run_side("prepare", folder, folder, "sample")
    run_side("build", folder, folder, ",".join(MIXTURES))
    trained = {}
    for mixture in MIXTURES:
        for types in ("mixture", "sensitivity"):
            if options.all or (mixture, types) in BARS:
                trained[mixture, types] = {
                    student: train(folder, mixture, types, student, options) for student in STUDENTS
                }
    files = {
        (mixture, types): (
            *(f"{mixture}-plain.gguf", f"{mixture}-imatrix.gguf"),
            f"{mixture}-ours.gguf" if types == "sensitivity" else begun(folder, mixture),
            *(str(one.file.relative_to(folder)) for one in both.values()),
        )
        for (mixture, types), both in trained.items()
    }
    names = sorted({name for some in files.values() for name in some})
    found = run_side("divergences", folder, folder, json.dumps(names))["found"]
    tokens = found.pop("tokens")
    rows = []
    for (mixture, types), some in files.items():
        megabytes = (folder / some[0]).stat().st_size / 1e6
        kl = [f"{found[name]['kl']:.5f}" for name in some]
        rows.append((f"{mixture}, {megabytes:.3f} MB", types, *kl, BARS.get((mixture, types), "–")))
    headers = ("bytes of", "types by", "llama.cpp's file", "with importance", "before training")
    headers += ("trained whole", "layer by layer", "bar")
    table(f"sample: KL divergence in nats a token, over {tokens:,} tokens", headers, rows)
    table("what each training took", ("", *COSTS), costs(trained))


def costs(trained: dict[tuple[str, str], dict[str, Trained]]) -> list[tuple]:
    """A row under COSTS for each training."""
    rows = []
    for (mixture, types), both in trained.items():
        for student, one in both.items():
            told, cost = one.metrics, one.cost
            updates = told["steps"] if student == "full" else told["updates_of_a_layer"]
            divergences = (f"{told[f'divergence_{when}']:.5f}" for when in ("before", "after"))
            changed = f"{told['changed_bytes']:.2%}"
            name = f"{mixture}, types by {types}, {STUDENTS[student]}"
            size = f"{one.file.stat().st_size:,}"
            rows.append((name, size, updates, changed, *divergences, cost.cpu, cost.megabytes))
    return rows


def begun(folder: Path, mixture: str) -> str:
    """The name of a file of the mixture's types whose columns make up for each other."""
    measure([sys.executable, __file__, "--begin", folder, mixture])
    return f"{mixture}-begun.gguf"


def begin(folder: Path, mixture: str) -> None:
    """Write it, by the importance that the other files have: what its training begins as."""
    from slimtune.export.budget import Allocation, Option
    from slimtune.export.gguf_writer import write_file
    from slimtune.export.imatrix import read_imatrix
    from slimtune.export.plan import Encoding
    from slimtune.export.preflight import preflight
    from slimtune.export.quant_types import encoded_bytes

    encoding = Encoding(importance=read_imatrix(folder / "imatrix.gguf"))
    plan = preflight(folder / "model", mixture, encoding=encoding)
    options = {}
    for name in (name for name in plan.tensors if plan.is_matrix(name)):
        kind = plan.choices[name].type
        options[name] = Option(kind, encoded_bytes(plan.shape(name), kind), 0.0)
    plan = replace(plan, allocation=Allocation(options))
    write_file({folder / f"{mixture}-begun.gguf": plan}, threads=1, name="m")


def train(
    folder: Path, mixture: str, types: str, student: str, options: argparse.Namespace
) -> Trained:
    """A student of the mixture's own types, or of those by sensitivity for its bytes."""
    rows = folder / f"first_{options.rows}.jsonl"
    lines = (folder / "rows" / "train_train.jsonl").read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join(lines[: options.rows]) + "\n", encoding="utf-8")
    size = (folder / f"{mixture}-plain.gguf").stat().st_size
    final = folder / f"student-{mixture}-{types}-{student}"
    cost = measure(
        [
            *(sys.executable, FINETUNE / "knowledge_distillation.py", "--overwrite"),
            *("--student-model", folder / "tuned" / "merged_model", "--device", "cpu"),
            *("--train-data", rows, "--text-data", folder / _PASSAGES),
            *("--text-passages", str(options.text), "--epochs", EPOCHS[student]),
            *("--output-dir", final, "--student", student),
            *("--cache-dir", folder / "cache", "--learning-rate", options.rate),
            *("--quantised-student", mixture if types == "mixture" else str(size)),
        ]
    )
    metrics = json.loads((final / "run.json").read_text(encoding="utf-8"))["metrics"]
    return Trained(final / metrics["file"], metrics, cost)


if __name__ == "__main__":
    main()
