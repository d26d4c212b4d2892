"""A model with all its tokens and with those in use: size, loss, logits, speed; side by side.

    python benchmarks/vocabulary.py FOLDER       # SmolLM2-135M-Instruct, as a model folder
    python benchmarks/vocabulary.py FOLDER --rows rows.csv --columns question=q,answer=a \\
        --languages en,zh

The rows (Banking77 where none are named) are prepared and the vocabulary is trimmed to them and to
the words of the languages, by the scripts; both models become F16 and Q4_K_M files. Loss and logits
are those of rows that no script has seen, in float32: of rows that both cut into the same tokens
token by token, with what part of the difference is probability that the dropped tokens had, and of
all rows in bits a byte. Speed is llama.cpp's, one sequence, the two files of a type in turn, the
best of `--rounds`. Everything is measured in this run.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measuring import FINETUNE, SHARED_DATA, machine, table

sys.path.insert(0, str(FINETUNE))

import torch

from slimtune import prompts
from slimtune.inference.answers import Speed
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import loading, tokenizers
from slimtune.models.compute import Compute
from slimtune.models.vocabulary_map import read_map
from slimtune.models.weights import Checkpoint

SIDES, TYPES = ("full", "trimmed"), ("F16", "Q4_K_M")
_SYSTEM = "Name the intent of this message to a bank, as one label."
_PROMPT, _WRITTEN = 256, 64  # tokens read and written for a speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of safetensors")
    parser.add_argument("--rows", type=Path, default=SHARED_DATA / "banking77" / "train.csv")
    parser.add_argument("--columns", default="question=text,answer=category")
    parser.add_argument("--system-prompt", default=_SYSTEM)
    parser.add_argument("--languages", default="en")
    parser.add_argument("--measured", type=int, default=120, help="rows for loss and logits")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(("torch", "transformers", "gguf", "xllamacpp")), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders, files = made(options, work)
        sizes(folders, files)
        losses(folders, work / "rows/train_test.jsonl", options.measured)
        speeds(folders, files, work / "rows/train_train.jsonl", options)


def script(name: str, *words: object) -> None:
    """Runs finetune/NAME.py; its words only where it fails."""
    command = [sys.executable, FINETUNE / f"{name}.py", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")


def made(options: argparse.Namespace, work: Path) -> tuple[dict[str, Path], dict]:
    """({side: model folder}, {(side, type): GGUF}): prepared, trimmed and converted."""
    rows, model = work / "rows", options.model.resolve()
    given = ("--columns", options.columns, "--system-prompt", options.system_prompt)
    script("prepare_data", "--input", options.rows.resolve(), "--output-dir", rows, *given)
    trim = ("--vocabulary", "trim", "--languages", options.languages, "--ffn-ratio", 0)
    trim += ("--criterion", "magnitude", "--calibration", "none")
    trim += ("--train-data", rows / "train_train.jsonl", "--output-dir", work / "trimmed")
    script("model_pruning", "--model-path", model, *trim)
    folders = dict(zip(SIDES, (model, work / "trimmed"), strict=True))
    for side, folder in folders.items():
        named = ("--model-name", side, "--output-dir", work, "--verify", "off")
        named += ("--quantization", ",".join(TYPES))
        script("convert_to_gguf", "--model-path", folder, *named)
    files = {(side, kind): work / f"{side}-{kind}.gguf" for side in SIDES for kind in TYPES}
    return folders, files


def sizes(folders: dict[str, Path], files: dict) -> None:
    whole, trimmed = (Checkpoint(folder) for folder in folders.values())
    lines = [
        ["tokens of vocabulary", *(one.config["vocab_size"] for one in (whole, trimmed))],
        ["parameters", *(one.parameters for one in (whole, trimmed))],
    ]
    lines += [
        [f"{kind}, bytes", *(files[side, kind].stat().st_size for side in SIDES)] for kind in TYPES
    ]
    table("size", ["", *SIDES, "saved"], [[*one, f"{1 - one[2] / one[1]:.1%}"] for one in lines])


@dataclass
class Sums:
    """Nats and tokens over rows that both sides cut alike, bits and bytes over all rows."""

    tokens: int = 0
    nats: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SIDES, 0.0))
    dropped: float = 0.0  # -log of what the kept tokens have together, in nats
    apart: float = 0.0  # largest difference of kept tokens' logits
    largest: float = 0.0
    alike: int = 0
    size: int = 0
    all_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    all_nats: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SIDES, 0.0))


@torch.inference_mode()
def losses(folders: dict[str, Path], rows: Path, count: int) -> None:
    """What both sides say of rows that were not trimmed to."""
    compute = Compute.choose("cpu", "float32")
    models = {side: loading.load_model(folder, compute) for side, folder in folders.items()}
    tokens = {side: tokenizers.load_tokenizer(folder) for side, folder in folders.items()}
    kept, sums = read_map(folders["trimmed"]).kept, Sums()
    template = prompts.template_of("auto", tokens["full"])
    messages = [json.loads(line)["messages"] for line in rows.open(encoding="utf-8")]
    chosen = messages[:: max(1, len(messages) // count)][:count]
    for row in chosen:
        ids = {s: prompts.encode(tokens[s], row, template)["input_ids"] for s in SIDES}
        logits = {s: models[s](torch.tensor([ids[s]])).logits[0] for s in SIDES}
        add(sums, ids, logits, kept)
        sums.size += len(tokens["full"].decode(ids["full"]).encode())
    show(sums, len(chosen))


def add(sums: Sums, ids: dict[str, list[int]], logits: dict[str, torch.Tensor], kept: list) -> None:
    said = {}
    for side in SIDES:
        wanted = torch.tensor(ids[side][1:])[:, None]
        said[side] = -logits[side][:-1].log_softmax(-1).gather(1, wanted).sum().item()
        sums.all_nats[side] += said[side]
        sums.all_tokens[side] += len(wanted)
    if [kept[id] for id in ids["trimmed"]] != ids["full"]:
        return
    sums.alike += 1
    sums.tokens += len(ids["full"]) - 1
    for side in SIDES:
        sums.nats[side] += said[side]
    whole = logits["full"][:-1].double()
    left = whole[:, kept].logsumexp(-1) - whole.logsumexp(-1)
    sums.dropped -= left.sum().item()
    difference = (logits["full"][:, kept] - logits["trimmed"]).abs().max().item()
    sums.apart = max(sums.apart, difference)
    sums.largest = max(sums.largest, logits["full"].abs().max().item())


def show(sums: Sums, rows: int) -> None:
    before, after = (sums.nats[side] / sums.tokens for side in SIDES)
    bits = {s: sums.all_nats[s] / math.log(2) / sums.size for s in SIDES}
    lines: list[list[Any]] = [
        [f"nats a token, {sums.alike} of {rows} rows cut alike", f"{before:.6f}", f"{after:.6f}"],
        [f"tokens of all {rows} rows", *(sums.all_tokens[s] for s in SIDES)],
        [f"bits a byte of all {rows} rows", *(f"{bits[s]:.5f}" for s in SIDES)],
    ]
    table("loss on rows that were not trimmed to", ["", *SIDES], lines)
    print(f"\nthe loss falls by {before - after:.6f} nats a token; the dropped tokens' probability")
    print(f"is {sums.dropped / sums.tokens:.6f} of it, the rest rounding")
    print(f"logits of kept tokens: {sums.apart:.1e} apart, {sums.apart / sums.largest:.0e} of the")
    print(f"largest, {sums.largest:.1f}", flush=True)


def speeds(folders: dict, files: dict, rows: Path, options: argparse.Namespace) -> None:
    """Tokens a second of both files of a type in turn, each asked for the same text."""
    text = "".join(json.loads(line)["messages"][-2]["content"] for line in rows.open("r"))[:8000]
    ids = {s: tokenizers.load_tokenizer(f)(text).input_ids[:_PROMPT] for s, f in folders.items()}
    lines = []
    for kind in TYPES:
        best = {side: Speed(0.0, 0.0) for side in SIDES}
        how = {"context": _PROMPT + _WRITTEN + 1, "threads": options.threads}
        with (
            LlamaCpp(files["full", kind], **how) as full,
            LlamaCpp(files["trimmed", kind], **how) as trimmed,
        ):
            for _ in range(options.rounds):
                for side, model in zip(SIDES, (full, trimmed), strict=True):
                    found = model.speed(ids[side], _WRITTEN)
                    best[side] = Speed(*map(max, best[side], found))
        for name, what in (("prompt", "read"), ("generation", "written")):
            pair = [getattr(best[side], name) for side in SIDES]
            lines.append([f"{kind}, tokens {what}", *pair, f"{pair[1] / pair[0]:.2f}"])
    title = f"tokens a second in llama.cpp, {options.threads} threads, best of {options.rounds}"
    table(title, ["", *SIDES, "times"], lines)


if __name__ == "__main__":
    main()
