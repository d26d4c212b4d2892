"""What training through a file's types wins: beside llama.cpp's mixtures and today's encoder.

    python benchmarks/quantised_student.py                 # the sample model, Q4_K_S and Q4_K_M
    python benchmarks/quantised_student.py --only Q4_K_M --students sized
    python benchmarks/quantised_student.py --rows 2560 --text 1280         # 240 steps

For the bytes of each mixture, in nats a token of KL divergence from the model in F32 over all
tokens of rows that nobody read, by llama.cpp's logits of the written files: the mixture as it is;
with an importance matrix; a file of the same bytes by sensitivity, whose columns make up for each
other (`convert_to_gguf.py --target-size`); and both kinds of types trained through
(`knowledge_distillation.py --quantised-student`): the mixture's own, and those by sensitivity.
Every file is the product's own scripts' work. Rows and steps are few: the order of things is told.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measuring import FINETUNE, machine, measure, table
from size import run_side

sys.path.insert(0, str(FINETUNE))
MIXTURES = ("Q4_K_S", "Q4_K_M")
STUDENTS = ("named", "sized")
BARS = {("Q4_K_S", "named"): 0.0056, ("Q4_K_M", "sized"): 0.0039}
_PASSAGES = "raw/sample_text.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MIXTURES), help="mixtures, with commas")
    parser.add_argument("--students", default=",".join(STUDENTS), help="kinds, with commas")
    parser.add_argument("--rows", type=int, default=640, help="training rows")
    parser.add_argument("--text", type=int, default=320, help="passages of the sample's text")
    parser.add_argument("--rate", default="auto", help="learning rate")
    parser.add_argument("--folder", type=Path, help="where to work; kept, for another run")
    options = parser.parse_args()
    print(machine(("torch", "transformers", "gguf", "xllamacpp")))
    with tempfile.TemporaryDirectory() as temporary:
        show((options.folder or Path(temporary)) / "sample", options)


def show(folder: Path, options: argparse.Namespace) -> None:
    """The table, and what each training took."""
    folder.mkdir(parents=True, exist_ok=True)
    run_side("prepare", folder, folder, "sample")
    built = run_side("build", folder, folder, options.only)["built"]
    trained = {
        (one["mixture"], kind): train(folder, one["mixture"], kind, options)
        for one in built
        for kind in options.students.split(",")
    }
    names = [one[side] for one in built for side in ("plain", "imatrix", "ours")]
    names += [str(file.relative_to(folder)) for file, _, _ in trained.values()]
    told = run_side("divergences", folder, folder, json.dumps(names))
    found = {name: f"{one['kl']:.5f}" for name, one in told["found"].items()}
    rows = []
    for one in built:
        mixture, cells = one["mixture"], []
        for kind in STUDENTS:
            file, _, _ = trained.get((mixture, kind), (None, None, None))
            bar = BARS.get((mixture, kind))
            text = found[str(file.relative_to(folder))] if file else "–"
            cells.append(f"{text} (bar {bar})" if bar else text)
        most = (folder / one["plain"]).stat().st_size / 1e6
        known = [found[one[side]] for side in ("plain", "imatrix", "ours")]
        rows.append((f"{mixture}, {most:.3f} MB", *known, *cells))
    headers = ("bytes of", "mixture", "importance", "by sensitivity", "mixture, trained")
    headers += ("by sensitivity, trained",)
    tokens = told["tokens"]
    table(f"sample: KL divergence in nats a token, over {tokens:,} tokens", headers, rows)
    for (mixture, kind), (file, metrics, cost) in trained.items():
        before, after = metrics["divergence_before"], metrics["divergence_after"]
        print(
            f"  {mixture} {kind}: {file.stat().st_size:,} bytes, {metrics['steps']} steps, "
            f"{cost:.0f} CPU s, {metrics['changed_bytes']:.2%} of the bytes changed; "
            f"on rows kept aside {before:.5f} -> {after:.5f}"
        )


def train(
    folder: Path, mixture: str, kind: str, options: argparse.Namespace
) -> tuple[Path, dict, float]:
    """(file, metrics of its run, CPU seconds) of a student as the script makes it."""
    rows = folder / f"first_{options.rows}.jsonl"
    lines = (folder / "rows" / "train_train.jsonl").read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join(lines[: options.rows]) + "\n", encoding="utf-8")
    size = (folder / f"{mixture}-plain.gguf").stat().st_size
    wanted = mixture if kind == "named" else str(size)
    final = folder / f"student-{mixture}-{kind}"
    cost = measure(
        [
            *(sys.executable, FINETUNE / "knowledge_distillation.py", "--overwrite"),
            *("--student-model", folder / "tuned" / "merged_model", "--device", "cpu"),
            *("--train-data", rows, "--text-data", folder / _PASSAGES),
            *("--text-passages", str(options.text), "--epochs", "1", "--output-dir", final),
            *("--cache-dir", folder / "cache", "--quantised-student", wanted),
            *("--learning-rate", options.rate),
        ]
    )
    metrics = json.loads((final / "run.json").read_text(encoding="utf-8"))["metrics"]
    return final / metrics["file"], metrics, cost.cpu


if __name__ == "__main__":
    main()
