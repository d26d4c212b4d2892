"""What a served model answers beside what was measured, on the sample's test rows.

    python benchmarks/served.py                       # about ten minutes on 2 cores
    python benchmarks/served.py --work /tmp/served    # kept; a second run takes what is there
    python benchmarks/served.py --rows 40             # only the first rows

The product's own scripts make the sample's fine-tuned model: as a folder, merged and as GGUF in F16
and Q4_K_M, and as an adapter beside its base in both types. `evaluate_model.py` asks them all: that
is the table. Then the same rows go to llama.cpp's own server, and to Ollama where `ollama` is on
PATH and running, without any sampling parameter, as a person's client would send them. The way
through Ollama was tried with a stand-in for it alone.

right    answers that match the reference
table    answers equal to the table's of the same files
tuned    answers equal to those of the fine-tuned model in transformers, base + adapter
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import served_sides
from measuring import FINETUNE, machine, table

sys.path.insert(0, str(FINETUNE))
TYPES = ("F16", "Q4_K_M")
TUNED = "fine-tuned"


@dataclass(frozen=True)
class Served:
    """Files that answer together, and what evaluate_model.py calls them."""

    title: str
    gguf: Path
    adapter: Path | None = None

    @property
    def label(self) -> str:
        return f"{self.gguf.stem}+{self.adapter.stem}" if self.adapter else self.gguf.stem

    @property
    def argument(self) -> str:
        return f"{self.gguf}+{self.adapter}" if self.adapter else str(self.gguf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="where to work; kept")
    parser.add_argument("--rows", type=int, default=0, help="of the test rows the first; 0: all")
    options = parser.parse_args()
    print(machine(("torch", "transformers", "peft", "gguf", "xllamacpp")))
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        make_models(work)
        sys.exit(show(work, options.rows))


def make_models(work: Path) -> None:
    """Everything that answers, by the scripts, each unless its result is there."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.yaml").write_text("{}\n", encoding="utf-8")
    models = work / "models"
    base, adapter = models / "sample/base", models / "finetuned/lora_adapter"
    types = ("--quantization", ",".join(TYPES))
    beside = ("--model-path", base, "--lora-model", adapter, "--lora-as", "adapter")
    step(work, models / "sample/run.json", "create_sample_data")
    step(work, work / "data/finetune/train_run.json", "prepare_data")
    step(work, adapter / "run.json", "train_lora")
    step(work, models / "finetuned/merged_model/run.json", "evaluate_model", "--merge")
    merged = ("convert_to_gguf", *types, "--model-name", "merged", "--create-modelfile")
    step(work, models / "gguf/merged-F16.gguf", *merged)
    file = work / "Modelfile"
    if file.is_file():
        file.rename(work / "Modelfile.merged")
    alone = ("convert_to_gguf", *beside, *types, "--model-name", "tuned", "--create-modelfile")
    step(work, models / "gguf/tuned-lora-F16.gguf", *alone)
    if file.is_file():
        file.rename(work / "Modelfile.adapter")


def step(work: Path, result: Path, script: str, *flags: str | Path) -> None:
    if result.exists():
        return
    command = [FINETUNE / f"{script}.py", "--config", work / "config.yaml", *flags]
    print(f"$ {' '.join(map(str, command))}", flush=True)
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=work, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    print("\n".join(line for line in done.stdout.splitlines() if line.startswith("      ")))


def served_by(work: Path) -> list[Served]:
    folder = work / "models/gguf"
    lora = folder / "tuned-lora-F16.gguf"
    merged = [Served(f"merged, then {one}", folder / f"merged-{one}.gguf") for one in TYPES]
    bases = [Served(f"adapter on {one} base", folder / f"base-{one}.gguf", lora) for one in TYPES]
    return [*merged, *bases]


def show(work: Path, rows: int) -> int:
    """Asks everybody and prints the table; 1 where adapter and F16 base answer otherwise."""
    servings = served_by(work)
    test = work / "data/finetune/train_test.jsonl"
    asked = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    asked = asked[: rows or None]
    answers, most_tokens = answers_of_the_table(work, servings, rows)
    tuned = answers[TUNED]

    def line(side: str, found: list[str], own: list[str]) -> list:
        return [side, right(found, asked), equal(found, own), equal(found, tuned)]

    lines = [line(f"transformers, {TUNED}", tuned, tuned)]
    for one in servings:
        own = answers[one.label]
        lines.append(line(f"llama.cpp, {one.title}", own, own))
    for one in servings:
        found = served_sides.ask_llama_server(one.gguf, one.adapter, asked, most_tokens)
        lines.append(line(f"its server, {one.title}", found, answers[one.label]))
    for one, said, found in asked_of_ollama(work, servings, asked, most_tokens):
        lines.append(line(f"{said}, {one.title}", found, answers[one.label]))
    table(f"{len(asked)} test rows", ("side", "right", "table", "tuned"), lines)
    same = equal(answers[servings[-2].label], tuned)
    print(
        f"{servings[-2].title}: {same} of {len(asked)} answers as the fine-tuned model's (bar: all)"
    )
    return int(same != len(asked))


def answers_of_the_table(
    work: Path, servings: Sequence[Served], rows: int
) -> tuple[dict[str, list[str]], int]:
    """{label: answers} by evaluate_model.py, and how many tokens an answer may have."""
    output = work / f"evaluation-{rows}/results.csv"
    models = ",".join(one.argument for one in servings)
    flags = ("--models", models, "--max-rows", str(rows), "--output", output)
    step(work, output, "evaluate_model", *flags)
    with output.open(encoding="utf-8-sig", newline="") as handle:
        written = list(csv.DictReader(handle))
    labels = [TUNED, *(one.label for one in servings)]
    answers = {label: [plain(row[f"{label} answer"]) for row in written] for label in labels}
    metrics = json.loads(output.with_name("results_metrics.json").read_text(encoding="utf-8"))
    return answers, metrics["settings"]["max_new_tokens"]


def plain(answer: str) -> str:
    """Without the apostrophe that keeps a spreadsheet from running it."""
    return answer.strip().removeprefix("'")


def right(found: Sequence[str], asked: Sequence[dict[str, Any]]) -> int:
    """How many answers match a reference of their row."""
    from slimtune.evaluation.measures import exact_match
    from slimtune.inference.questions import Question

    questions = map(Question.of, asked)
    pairs = zip(found, questions, strict=True)
    return sum(
        any(exact_match(answer, one, row.extract) for one in row.references)
        for answer, row in pairs
    )


def equal(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(plain(a) == plain(b) for a, b in zip(one, other, strict=True))


def asked_of_ollama(
    work: Path, servings: Sequence[Served], asked: Sequence[dict[str, Any]], most_tokens: int
) -> Iterator[tuple[Served, str, list[str]]]:
    """(files, Ollama and its version, answers) by the Modelfiles that the scripts wrote."""
    if shutil.which("ollama") is None:
        print("ollama is not on PATH: left out")
        return
    version = served_sides.ollama_version()
    if version is None:
        print("ollama is on PATH and no server of it answers: left out; start `ollama serve`")
        return
    for one in servings:
        kind, first = ("adapter", "base") if one.adapter else ("merged", "merged")
        text = (work / f"Modelfile.{kind}").read_text(encoding="utf-8")
        modelfile = work / "Modelfile.asked"
        modelfile.write_text(text.replace(f"{first}-{TYPES[0]}.gguf", one.gguf.name), "utf-8")
        found = served_sides.ask_ollama(modelfile, asked, most_tokens)
        if isinstance(found, str):
            print(f"ollama {version}, {one.title}: {found}")
        else:
            yield one, f"ollama {version}", found


if __name__ == "__main__":
    main()
