"""Scripts killed with `kill -9` at random moments, again and again: each goes on to the same bytes.

    python benchmarks/kill_loop.py                   # 300 seconds
    python benchmarks/kill_loop.py --seconds 600 --seed 2 --steps train,distil

A step is run twice undisturbed: files that differ between the two tell times or paths, and are not
compared. Then it is killed one to three times, after a random part of the CPU seconds that it
takes, so that a busy machine changes nothing, and goes on with the same command, or with what its
error says to add (--resume, --overwrite). After each kill whatever has the output's name is whole;
at the end no file differs and nothing half-written lies about. `crash_resume.py` kills whole
processes.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fault_matrix import is_whole
from forked import FINAL, WORDS, Cell, Ended, contents, make_home
from measuring import table

_STAGED = (".partial", ".ready", ".old")
_MERGE = ("--base-model", "base", "--lora-model", "adapter", "--merge")
# Step -> script, its words, and its output below `new`.
STEPS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "prepare": ("prepare_data", WORDS["prepare_data"], FINAL["prepare_data"]),
    "train": (
        "train_lora",
        (*WORDS["train_lora"], "--evaluations-per-epoch", "4", "--lora-dropout", "0.1"),
        FINAL["train_lora"],
    ),
    "prune": ("model_pruning", WORDS["model_pruning"], FINAL["model_pruning"]),
    "distil": (
        "knowledge_distillation",
        (*WORDS["knowledge_distillation"], "--evaluations-per-epoch", "4"),
        FINAL["knowledge_distillation"],
    ),
    "merge": ("evaluate_model", (*_MERGE, "--output-dir", "new/merged"), "merged"),
    "convert": ("convert_to_gguf", WORDS["convert_to_gguf"], FINAL["convert_to_gguf"]),
}


@dataclass
class Undisturbed:
    """What a step writes, but for what tells times or paths, and the CPU seconds that it takes."""

    files: dict[str, str]
    cpu: float
    counts: Counter = field(default_factory=Counter)


def cell_of(home: Path, step: str) -> Cell:
    script, words, _ = STEPS[step]
    cell = Cell(home, script)
    cell.words = ["--config", "config.yaml", *words]
    return cell


def undisturbed(home: Path, step: str) -> Undisturbed:
    found = []
    for _ in range(2):
        cell = cell_of(home, step)
        ended = cell.run()
        assert ended.code == 0, ended.err
        found.append(contents(cell.folder / "new"))
        cell.close()
    one, two = found
    assert one.keys() == two.keys()
    same = {name: digest for name, digest in one.items() if two[name] == digest}
    print(f"{step}: {len(same)} files compared; not: {', '.join(sorted(one.keys() - same.keys()))}")
    return Undisturbed(same, ended.cpu)


def after(seconds: float) -> Callable[[int], None]:
    """Kills a process once it has had so much of the processor."""

    def kill(child: int) -> None:
        process = psutil.Process(child)
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if sum(process.cpu_times()[:2]) >= seconds:
                os.kill(child, signal.SIGKILL)
                return
            time.sleep(0.002)

    return kill


def goes_on(cell: Cell) -> Ended:
    """The same command, or with what its error says to add."""
    told = cell.words
    for more in ([], ["--resume"], ["--overwrite"]):
        cell.words = [*told, *more]
        ended = cell.run()
        if ended.code != 2:  # killed, at its end, or wrong
            break
    cell.words = told
    return ended


def one_round(home: Path, step: str, whole: Undisturbed, chance: random.Random) -> str:
    """Kill it, let it go on: what is wrong in the end, or nothing."""
    cell, count = cell_of(home, step), whole.counts
    final = cell.folder / "new" / STEPS[step][2]
    try:
        for _ in range(chance.randint(1, 3)):
            cell.during = after(chance.uniform(0, whole.cpu))
            ended = goes_on(cell)
            if ended.code != -signal.SIGKILL:
                break
            count["kills"] += 1
            if not is_whole(final):
                return f"{final.name} is half-written after a kill"
        cell.during = lambda child: None
        if ended.code == -signal.SIGKILL:
            ended = goes_on(cell)
        if ended.code:
            return f"exit {ended.code}: {ended.err[-600:]}"
        count["went on"] += 1
        return differing(cell.folder / "new", whole)
    finally:
        cell.close()


def differing(folder: Path, whole: Undisturbed) -> str:
    found = contents(folder)
    if staged := [path.name for path in folder.rglob("*") if path.suffix in _STAGED]:
        return f"left: {', '.join(staged)}"
    if wrong := [name for name, digest in whole.files.items() if found.get(name) != digest]:
        return f"not the same bytes: {', '.join(wrong)}"
    whole.counts["equal"] += 1
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", default=",".join(STEPS))
    options = parser.parse_args()
    steps, chance, wrong = options.steps.split(","), random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        home = make_home(Path(name))
        expected = {step: undisturbed(home, step) for step in steps}
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < options.seconds:
            step = steps[rounds % len(steps)]
            rounds += 1
            if fault := one_round(home, step, expected[step], chance):
                wrong += 1
                print(f"--- {step}: {fault}", flush=True)
        seconds = time.monotonic() - begun
    names = ("kills", "went on", "equal")
    rows = [(step, *(expected[step].counts[name] for name in names)) for step in steps]
    table("killed at random moments", ("step", *names), rows)
    total = sum((one.counts for one in expected.values()), Counter())
    print(f"\n{total['kills']} kills in {rounds} rounds and {seconds:.0f} s: "
          f"{total['equal']} equal, {wrong} wrong")  # fmt: skip
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
