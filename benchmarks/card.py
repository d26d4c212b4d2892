"""All that makes a model smaller, in one run and one file, beside the model it was made from.

    python benchmarks/card.py                  # the sample model
    python benchmarks/card.py --real FOLDER    # and SmolLM2, which real_model.py fine-tuned there
    python benchmarks/card.py --folder FOLDER  # kept; what has finished is not done again

The combined script starts from a fine-tuned model, its teacher as well: FFN neurons cut (of SmolLM2
the tokens, too, that neither its rows nor English need), layers taught one after another, the whole
taught by the model that it was, an adapter on the task, and a file whose types lose least for a
fifth of the bytes that the fine-tuned model takes in 16 bits. SmolLM2 learns from 1,500 of its
rows, drawn evenly. The bar: in that fifth, 97 % of the fine-tuned model's exact match. What each
stage took and brought stands in card.md, which is shown.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import FINETUNE, machine, measure, table
from size import fine_tuned_sample

BYTES, MATCH = 0.20, 0.97  # the bars: of the 16-bit bytes, of the fine-tuned model's exact match
ROWS, TEST_ROWS = 1500, 500
CUTS = {
    "sample": "--ffn-ratio 0.25 --distillation-epochs 3 --learning-rate 2e-4",
    "SmolLM2": "--vocabulary trim --languages en --ffn-ratio 0.2 --distillation-epochs 1 "
    "--distillation-learning-rate 3e-5 --learning-rate 2e-4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="a folder of real_model.py: SmolLM2 as well")
    parser.add_argument("--folder", type=Path, help="where to work; kept, for another run")
    options = parser.parse_args()
    print(machine(("torch", "transformers", "peft", "gguf", "xllamacpp")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        sample = folder / "sample"
        sample.mkdir(parents=True, exist_ok=True)
        show("sample", sample, fine_tuned_sample(sample), sample / "rows")
        if options.real:
            real = options.real.resolve()
            tuned, rows = real / "models/finetuned/merged_model", folder / "smollm2" / "rows"
            if not rows.is_dir():
                draw(real / "data/finetune", rows)
            show("SmolLM2", folder / "smollm2", tuned, rows)


def show(name: str, folder: Path, tuned: Path, rows: Path) -> None:
    """Runs the combined script where it has not finished, and prints its card and the bars."""
    whole, config = (tuned / "model.safetensors").stat().st_size, folder / "config.yaml"
    if not config.is_file():
        config.write_text("{}\n", encoding="utf-8")  # all that matters is said below
    if not (folder / "small/card.md").is_file():
        words = f"--config {config} --base-model {tuned} --teacher-model {tuned} {CUTS[name]}"
        words += f" --recover blocks --epochs 1 --target-size {int(BYTES * whole)}"
        words += f" --max-rows {TEST_ROWS} --train-data {rows}/train_train.jsonl"
        words += f" --test-data {rows}/train_test.jsonl"
        words += f" --output-dir {folder}/small --resume"
        print(f"\n$ python finetune/train_pruned_distilled.py {words}", flush=True)
        measure([sys.executable, FINETUNE / "train_pruned_distilled.py", *shlex.split(words)])
    print(f"\n{(folder / 'small/card.md').read_text(encoding='utf-8')}")
    (results,) = folder.glob("small/evaluation-*/evaluation_results_metrics.json")
    first, *_, last = json.loads(results.read_text(encoding="utf-8"))["models"]
    before, after = (one["exact_match"]["score"] for one in (first, last))
    size = last["cost"]["bytes_on_disk"]
    small, good = size <= BYTES * whole, after >= MATCH * before
    rows = [
        ("bytes", f"{whole:,}", f"{size:,}", f"{size / whole:.1%}", "20 %", _word(small)),
        ("exact match %", before, after, f"{after / before:.1%}", "97 %", _word(good)),
    ]
    table(f"{name}: {last['label']}", ("", "fine-tuned", "file", "share", "bar", "met"), rows)


def _word(met: bool) -> str:
    return "yes" if met else "no"


def draw(source: Path, target: Path) -> None:
    """`ROWS` of the training rows, evenly, and all others."""
    target.mkdir(parents=True)
    for split in ("validation", "test"):
        shutil.copy(source / f"train_{split}.jsonl", target)
    lines = (source / "train_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    count = min(ROWS, len(lines))
    drawn = [lines[n * len(lines) // count] for n in range(count)]
    (target / "train_train.jsonl").write_text("".join(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
