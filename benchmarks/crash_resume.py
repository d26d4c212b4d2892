"""Kill a training run with `kill -9` at a random moment, resume it, and compare every bit.

    python benchmarks/crash_resume.py              # 20 trials, half of them in the middle of a save
    python benchmarks/crash_resume.py --small      # 4 trials

Twenty steps of train_lora.py on a tiny random Llama, a checkpoint every second step. A trial is
killed, goes on with --resume, and must end with the adapter of the run that was never stopped.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measuring import FINETUNE, machine, table

SEED = 7
ADAPTER = Path("lora_adapter") / "adapter_model.safetensors"
VARIABLES = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Trial:
    """When it was killed, what was found, and whether the adapter came out the same."""

    during_save: bool
    newest: str
    resumed_from: str
    same: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="4 trials instead of 20")
    trials = 4 if parser.parse_args().small else 20
    random.seed(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_world(folder)
        print(machine())
        subprocess.run(_command(folder, "whole"), env=VARIABLES, check=True, capture_output=True)
        expected = (folder / "whole" / ADAPTER).read_bytes()
        done = [_trial(folder, number, expected) for number in range(trials)]
    rows = [
        (
            number + 1,
            "during a save" if one.during_save else "between saves",
            one.newest,
            one.resumed_from,
            "bitwise equal" if one.same else "DIFFERENT",
        )
        for number, one in enumerate(done)
    ]
    headers = ("trial", "killed", "newest on disk", "resumed from", "adapter")
    table("train 20 steps = train some, kill -9, --resume", headers, rows)
    saves = sum(one.during_save for one in done)
    same = sum(one.same for one in done)
    print(f"\n{same} of {trials} equal (bar: all), {saves} killed during a save")
    sys.exit(same != trials)


def _command(folder: Path, output: str, *more: str) -> list[str]:
    flags = {
        "base-model": folder / "base",
        "train-data": folder / "rows.jsonl",
        "val-data": folder / "validation.jsonl",
        "output-dir": folder / output,
        "epochs": 2,
        "batch-size": 4,
        "evaluations-per-epoch": 5,
        "lora-dropout": 0.1,
        "device": "cpu",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    # Defaults alone: what the user has written into config.yaml is another run.
    config = f"--config={folder / 'config.yaml'}"
    return [sys.executable, str(FINETUNE / "train_lora.py"), config, *words, *more]


def _trial(folder: Path, number: int, expected: bytes) -> Trial:
    output = f"trial{number}"
    checkpoints = folder / output / "checkpoints"
    process = subprocess.Popen(
        _command(folder, output),
        env=VARIABLES,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for_the_moment(checkpoints, in_a_save=number % 2 == 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = sorted(path.name for path in checkpoints.glob("checkpoint-*"))
    newest = max(names, key=lambda name: int(name.split("-")[1].removesuffix(".partial")))
    ended = subprocess.run(
        _command(folder, output, "--resume"), env=VARIABLES, capture_output=True, text=True
    )
    said = [line for line in ended.stderr.splitlines() if line.startswith("resuming from")]
    adapter = folder / output / ADAPTER
    same = ended.returncode == 0 and adapter.read_bytes() == expected
    shutil.rmtree(folder / output)
    resumed = Path(said[0].split()[-1]).name if said else "step 0"
    return Trial(any(n.endswith(".partial") for n in names), newest, resumed, same)


def _wait_for_the_moment(checkpoints: Path, *, in_a_save: bool) -> None:
    """Returns inside the save of a random step, or some time after a random checkpoint."""
    step = random.choice(range(2, 19, 2))
    wanted = checkpoints / f"checkpoint-{step}{'.partial' if in_a_save else ''}"
    while not wanted.exists():
        pass
    time.sleep(random.uniform(0, 0.01 if in_a_save else 0.2))


def _make_world(folder: Path) -> None:
    """A tiny random Llama with the sample tokenizer, and forty rows to learn."""
    (folder / "config.yaml").write_text("{}\n", encoding="utf-8")
    config = f"--config={folder / 'config.yaml'}"
    script = FINETUNE / "create_sample_data.py"
    subprocess.run(
        [
            sys.executable,
            script,
            config,
            f"--output-dir={folder}/data",
            f"--models-dir={folder}/models",
        ],
        env=VARIABLES,
        check=True,
        capture_output=True,
    )
    shutil.move(folder / "models" / "base", folder / "base")
    for name, count in (("rows", 40), ("validation", 8)):
        rows = [
            {"instruction": f"What is {i} and {i}?", "input": "", "output": f"It is {2 * i}."}
            for i in range(count)
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
