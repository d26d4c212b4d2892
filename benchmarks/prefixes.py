"""What rows begin with in common: computed once, and once for each row; side by side.

    python benchmarks/prefixes.py MODEL data/finetune/train_train.jsonl
    python benchmarks/prefixes.py MODEL ../shared/data/banking77/train.csv \\
        --columns question=text,answer=category

Steps of a LoRA, rows scored, rows answered: tokens of whole rows per CPU second with and without
sharing, and what is different: the loss of a row or batch at most, or how many answers. Any file
but .jsonl is prepared first, with the system prompt of `--system-prompt`. One thread, one process;
each side is run `--rounds` times in turn, and its fastest counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measuring import FINETUNE, machine, table

sys.path.insert(0, str(FINETUNE))

import torch

from slimtune.config import Config
from slimtune.inference import batching, generation, token_losses
from slimtune.inference.decoding import Decoding
from slimtune.models import loading
from slimtune.models.compute import Compute
from slimtune.training import lora, losses
from slimtune.training.attention import training_compute
from slimtune.training.batches import Sample, collate
from slimtune.training.dataset import read_dataset
from slimtune.training.forward import loss_parts, supervised

SYSTEM = "Name the intent of this message to a bank, as one label."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of safetensors")
    parser.add_argument("rows", type=Path, help="prepared rows, or a file to prepare")
    parser.add_argument("--columns", help="as in prepare_data.py")
    parser.add_argument("--system-prompt", default=SYSTEM)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        rows = options.rows if options.rows.suffix == ".jsonl" else prepared(options, Path(folder))
        config = Config.model_validate(
            {
                "model": {"base_model": str(options.model), "dtype": options.dtype},
                "training": {"train_data": rows, "val_data": None},
            }
        )
        dataset = read_dataset(str(options.model), "auto", config.training)
    samples = dataset.train[: options.batch * options.batches]
    name = str(options.model)
    learner = loading.load_model(name, training_compute(config.model))
    model = loading.load_model(name, Compute.of(config.model))
    lines = [
        line("training, LoRA", samples, options, training(learner, config, options.batch)),
        line("rows scored", samples, options, scoring(model, options.batch)),
        line("rows answered", samples, options, answering(model, options, dataset.tokenizer)),
    ]
    heads = ["work", "whole, tokens/CPU s", "shared, tokens/CPU s", "times", "other by"]
    table(f"{len(samples)} rows, {options.batch} at a time, {options.dtype}", heads, lines)


def prepared(options: argparse.Namespace, folder: Path) -> Path:
    """The training rows that prepare_data.py makes of the file."""
    command = [sys.executable, str(FINETUNE / "prepare_data.py"), "--input", str(options.rows)]
    command += ["--output-dir", str(folder), "--system-prompt", options.system_prompt]
    command += ["--columns", options.columns] if options.columns else []
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return folder / "train_train.jsonl"


Work = Callable[[Sequence[Sample], bool], list[Any]]  # losses, or the ids of answers


def line(what: str, samples: Sequence[Sample], options: Any, work: Work) -> list[Any]:
    tokens = sum(len(one.input_ids) for one in samples)
    best, found = {}, {}
    for _ in range(options.rounds):
        for share in (False, True):
            started = time.process_time()
            found[share] = work(samples, share)
            seconds = time.process_time() - started
            best[share] = min(best.get(share, seconds), seconds)
    rates = [tokens / best[share] for share in (False, True)]
    return [what, *rates, f"{rates[1] / rates[0]:.2f}", apart(*found.values())]


def apart(whole: list[Any], shared: list[Any]) -> str:
    pairs = list(zip(whole, shared, strict=True))
    if isinstance(whole[0], list):
        return f"{sum(a != b for a, b in pairs)} of {len(pairs)} answers"
    return f"{max(abs(a - b) / max(abs(a), 1) for a, b in pairs):.1e} of a loss"


def training(model: Any, config: Config, size: int) -> Work:
    learner = lora.attach(model, config.lora, seed=0, quantized=False)

    def steps(samples: Sequence[Sample], share: bool) -> list[float]:
        found = []
        for start in range(0, len(samples), size):
            batch = collate(samples[start : start + size], share=share)
            read = supervised(batch)
            targets = batch["labels"][0, read + 1]
            parts = loss_parts(
                learner,
                batch,
                read,
                lambda z, at, own=targets: losses.cross_entropy(z, own[at]),
            )
            parts[0].backward()
            found.append(parts[0].item() / len(read))
        learner.zero_grad()
        return found

    return steps


def scoring(model: Any, size: int) -> Work:
    def score(samples: Sequence[Sample], share: bool) -> list[float]:
        found = []
        for start in range(0, len(samples), size):
            rows = [vars(one) for one in samples[start : start + size]]
            with sharing(share):
                found += [
                    sum(one.nats) / len(one.nats) for one in token_losses.batch_losses(model, rows)
                ]
        return found

    return score


def answering(model: Any, options: Any, tokenizer: Any) -> Work:
    def answer(samples: Sequence[Sample], share: bool) -> list[list[int]]:
        prompts = [one.input_ids[: batching.before_needed(one.labels) + 1] for one in samples]
        decoding, found = Decoding(options.new_tokens), []
        for start in range(0, len(prompts), options.batch):
            with sharing(share):
                some = prompts[start : start + options.batch]
                answers = generation.generate_batch(model, tokenizer, some, decoding)
                found += [one.ids for one in answers]
        return found

    return answer


class sharing:
    """Within, beginnings are read once, or not."""

    def __init__(self, on: bool) -> None:
        self.shortest = batching.SHORTEST_SHARED if on else sys.maxsize

    def __enter__(self) -> None:
        self.before, batching.SHORTEST_SHARED = batching.SHORTEST_SHARED, self.shortest

    def __exit__(self, *_: object) -> None:
        batching.SHORTEST_SHARED = self.before


if __name__ == "__main__":
    main()
