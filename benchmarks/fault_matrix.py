"""Every fault made to happen to every script: a row a fault, a column a script, a cell its end.

    python benchmarks/fault_matrix.py                     # all of it
    python benchmarks/fault_matrix.py --only disk,memory --scripts train_lora

A cell is right when the exit code is one of the row's, an error has its three lines and no
traceback, nothing half-written has the output's name, no input changed and no foreign code ran. It
shows the exit code: `.` where a script has no such input, `!` behind one that is not right. Some
rows need root (disks of their own, a user without rights) and are left out without it.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import fault_inputs as inputs
import fault_places as places
import psutil
from forked import ALL, LEARNING, Cell, Ended, contents, make_home
from measuring import table

from slimtune.artifacts import run_of
from slimtune.artifacts.files import broken

READS_WEIGHTS = (*LEARNING, "model_pruning", "evaluate_model", "convert_to_gguf")
USES_DEVICE = (*LEARNING, "evaluate_model")
READS_TOKENIZER = ("prepare_data", *READS_WEIGHTS)
READS_ROWS = ("prepare_data", *LEARNING, "evaluate_model")
READS_ADAPTER = ("evaluate_model",)
SHORT = {
    "create_sample_data": "sample",
    "prepare_data": "prepare",
    "train_lora": "train",
    "model_pruning": "prune",
    "knowledge_distillation": "distil",
    "train_pruned_distilled": "combined",
    "evaluate_model": "evaluate",
    "convert_to_gguf": "convert",
}


@dataclass(frozen=True)
class Fault:
    """A row: `right` are the exit codes with which a script of `scripts` may end."""

    name: str
    right: tuple[int, ...]
    make: places.Make
    scripts: tuple[str, ...] = ALL
    given: str = "given"
    needs_root: bool = False


_FILE = (
    ("missing", inputs.gone),
    ("empty", inputs.empty),
    ("cut in half", inputs.cut),
    ("a folder", inputs.a_folder),
    ("a link in a circle", inputs.a_circle),
    ("an I/O error", inputs.an_io_error),
    ("zeros", inputs.zeros),
    ("100,000 brackets", inputs.brackets),
)


def damaged(
    kind: str,
    file: str | inputs.NameOf,
    scripts: tuple[str, ...],
    leave: Iterable[str] = (),
    right: tuple[int, ...] = (3,),
) -> list[Fault]:
    """A row for each thing that can happen to a file that is read."""
    rows = [
        Fault(f"{kind}: {name}", right, inputs.to(file, change), scripts)
        for name, change in _FILE
        if name not in leave
    ]
    unreadable = inputs.unreadable(file)
    return [*rows, Fault(f"{kind}: no right to read", (3,), unreadable, scripts, needs_root=True)]


_NINES = [f"    - &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcd", "bcde", strict=True)]
_BOMB = "\n".join(["lora:", "  target_modules:", "    - &a [x, x]", *_NINES])
OUTPUTS = [
    Fault("nothing", (0,), lambda cell: None),
    Fault("a file above the output", (2,), places.file_above),
    Fault("a file or folder in its place", (2,), places.name_taken),
    Fault("a broken link in its place", (2,), places.broken_link),
    Fault("a link to a folder in its place", (0,), places.linked_folder),
    Fault("files of the user's in its place", (2,), places.foreign_files),
    Fault("a name too long", (4,), places.long_name),
    Fault("no right to write", (4,), places.no_right_to_write, needs_root=True),
    Fault("a read-only disk", (4,), places.read_only, needs_root=True),
    Fault("a full disk", (4,), places.full_disk, needs_root=True),
    Fault("a disk that fills", (4,), places.disk_that_fills, needs_root=True),
    Fault("finished by a run before", (2,), places.finished),
    Fault("another run writes it", (6,), places.locked),
    Fault("the output is an input", (2,), places.output_is_input, ALL[1:]),
]
MACHINE = [
    Fault("ulimit -f 20 kB", (4,), places.limit(psutil.RLIMIT_FSIZE, lambda: 20_000)),
    Fault("too many open files", (0, 4), places.limit(psutil.RLIMIT_NOFILE, places.a_few_files)),
    Fault("16 MB of memory", (0, 4), places.limit(psutil.RLIMIT_AS, places.a_little_memory)),
    Fault("no more threads", (0, 4), places.few_threads, needs_root=True),
    Fault("no temporary folder", (0, 4), places.no_temporary_folder),
    Fault("the reader of stdout is gone", (4,), places.reader_gone),
    Fault("the working directory is gone", (0, 4), places.folder_gone),
    Fault("Ctrl-C while it writes", (0, 130), places.sent(signal.SIGINT, again=True)),
    Fault("SIGTERM while it writes", (0, -15, 130), places.sent(signal.SIGTERM, again=True)),
    Fault("kill -9 while it writes", (0, -9), places.sent(signal.SIGKILL, again=True)),
    Fault("a package is missing", (4,), inputs.hidden("numpy", "tokenizers"), READS_TOKENIZER),
    Fault("matplotlib is missing", (0,), inputs.hidden("matplotlib")),
    Fault("a GPU is asked for", (4,), inputs.words("--device", "cuda"), USES_DEVICE),
    Fault("a Hub id, no network", (0, 3, 4), inputs.elsewhere, READS_TOKENIZER),
    Fault("a rate of a million", (5,), inputs.words("--learning-rate", "1e6"), LEARNING),
]
_CONFIG, _WEIGHTS = "base/config.json", "base/model.safetensors"
_NAN = inputs.with_number(float("nan"))
_HUGE = inputs.with_number(1e30, everywhere=True)
_ADAPTER = "adapter/adapter_model.safetensors"
INPUTS = [
    *damaged("rows", inputs.rows_of, READS_ROWS),
    *[Fault(f"plain text: {name}", (0, 3), inputs.with_text(change), LEARNING[1:])
      for name, change in (*_FILE, ("Latin-1", inputs.text(b"caf\xe9\n" * 40)))],
    *damaged("weights", _WEIGHTS, READS_WEIGHTS),
    Fault("weights: a pickle", (3,), inputs.to(_WEIGHTS, inputs.pickled), READS_WEIGHTS),
    Fault("weights: index outside", (3,), inputs.to(_WEIGHTS, inputs.index_outside), READS_WEIGHTS),
    Fault("weights: half zeros", (0, 3, 5), inputs.to(_WEIGHTS, inputs.half_zeros), READS_WEIGHTS),
    Fault("weights: all 10^30", (0, 3, 5), inputs.to(_WEIGHTS, _HUGE), READS_WEIGHTS),
    Fault("weights: NaN", (3,), inputs.to(_WEIGHTS, _NAN), READS_WEIGHTS),
    Fault("weights: others than recorded", (3,), inputs.to(_WEIGHTS, _NAN),
          READS_WEIGHTS, "recorded"),
    *damaged("config.json", _CONFIG, READS_WEIGHTS),
    Fault("config.json: wrong types", (3,), inputs.to(_CONFIG, inputs.values(
        hidden_size="64", rope_scaling=[1], vocab_size=None)), READS_WEIGHTS),
    Fault("config.json: a million layers", (3,), inputs.to(_CONFIG, inputs.values(
        num_hidden_layers=10**6)), READS_WEIGHTS),
    Fault("config.json: code of its own", (3,), inputs.to(_CONFIG, inputs.foreign_code),
          READS_WEIGHTS),
    # tokenizer.json is there too, and may decide.
    *damaged("tokenizer", "base/tokenizer.model", READS_TOKENIZER, ["missing"], (0, 3)),
    Fault("tokenizer: wrong types", (3,), inputs.without_pieces, READS_TOKENIZER),
    Fault("template: an escape", (3,), inputs.template(inputs.ESCAPE), READS_TOKENIZER),
    Fault("template: an endless loop", (3,), inputs.template(inputs.ENDLESS), READS_TOKENIZER),
    Fault("template: 10 GB of text", (3,), inputs.template(inputs.BOMB), READS_TOKENIZER),
    Fault("template: an endless macro", (3,), inputs.template(inputs.MACRO), READS_TOKENIZER),
    *damaged("adapter", _ADAPTER, READS_ADAPTER),
    Fault("adapter: a pickle", (3,), inputs.to(_ADAPTER, inputs.pickled), READS_ADAPTER),
    Fault("adapter: NaN", (3,), inputs.to(_ADAPTER, _NAN), READS_ADAPTER),
    *damaged("adapter_config.json", "adapter/adapter_config.json", READS_ADAPTER),
    Fault("unfinished inputs", (3,), inputs.unfinished, ALL[1:]),
    Fault("run.json: names outside", (3,), inputs.foreign_record(
        files={"../victim": {"sha256": "0" * 64, "bytes": 3}}), READS_WEIGHTS),
    Fault("run.json: odd values", (0,), inputs.foreign_record(
        metrics={"system_prompt": [1], "loss": "x", "template": {}},
        settings={"model": {"prompt_template": 7}, "lora": {"rank": "x"}},
        versions={"torch": 3}), READS_WEIGHTS),
    Fault("run.json: odd inputs", (0, 3), inputs.foreign_record(
        inputs=[{"path": "\ud800", "run_id": 3}]), READS_WEIGHTS),
    Fault("foreign NAME.ready", (0,), inputs.attacked, ALL[1:]),
]  # fmt: skip
SETTINGS = [
    Fault(f"config.yaml: {name}", (2,), inputs.setting(content))
    for name, content in {
        "an object of Python's": "model:\n  x: !!python/object/apply:os.system ['touch CANARY']\n",
        "an alias bomb": _BOMB,
        "a list in itself": "lora:\n  target_modules: &a [*a]\n",
        "5,000 brackets": "model:\n  base_model: " + "[" * 5000,
        "5,000 digits": "training:\n  seed: " + "9" * 5000,
        "NUL": "model:\n  base_model: a\0b\n",
        "Latin-1": b"model:\n  base_model: caf\xe9\n",
        "an unknown name": "modell:\n  base_model: base\n",
        "a list": "- a\n- b\n",
    }.items()
] + [
    Fault("a token as a value", (0, 2, 3), inputs.secret),
    Fault("a token in an address", (2, 3), inputs.words("--models", "http://a:pw12345678@h/v1")),
]
FAULTS = [*OUTPUTS, *MACHINE, *INPUTS, *SETTINGS]


def cell_of(fault: Fault, script: str, home: Path) -> tuple[Ended, str]:
    """How the run ended, and what is wrong with that."""
    cell = Cell(home, script, fault.given)
    try:
        fault.make(cell)
        before = contents(cell.folder, leave=("new",))
        ended = cell.run()
        wrong = [judged(fault, cell, ended), *(check(ended) for check in cell.after)]
        if not cell.words[-1].startswith("n" * 99) and contents(cell.folder, ("new",)) != before:
            wrong.append("what it reads was changed")
        if list(cell.folder.glob("**/CANARY")):
            wrong.append("foreign code ran")
        return ended, "; ".join(filter(None, wrong))
    finally:
        cell.close()


def judged(fault: Fault, cell: Cell, ended: Ended) -> str:
    lines = ended.err.splitlines()
    if ended.code not in fault.right:
        return f"exit {ended.code}: {ended.err[-600:]}"
    if "Traceback" in ended.err:
        return ended.err[-1500:]
    if ended.code and 0 < ended.code < 130:
        starts = [line[:7] for line in lines[-4:]]
        if starts[:3] != ["error: ", "  why: ", "  do:  "]:
            return f"not three lines: {lines[-4:]}"
        if ended.code in (3, 4, 5) and not is_whole(cell.final):
            return f"{cell.final.name} was left half-written"
    return ""


def is_whole(final: Path) -> bool:
    """Whether it is not there, or all of it is: some scripts write several outputs in a row."""
    run = run_of(final)
    if run is None:
        return not final.exists()
    root, files = (final, run["files"]) if final.is_dir() else (final.parent, [final.name])
    return broken(root, {name: run["files"][name] for name in files}) is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose names hold one of these words")
    parser.add_argument("--scripts", default=",".join(ALL))
    options = parser.parse_args()
    wanted = [fault for fault in FAULTS if any(w in fault.name for w in options.only.split(","))]
    if os.geteuid():
        wanted = [fault for fault in wanted if not fault.needs_root]
    scripts = [script for script in ALL if script in options.scripts.split(",")]
    rows, count, cpu, begun = [], Counter(), 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        home = make_home(Path(name))
        for fault in wanted:
            row = [fault.name]
            for script in scripts:
                if script not in fault.scripts:
                    row.append(".")
                    continue
                ended, wrong = cell_of(fault, script, home)
                cpu += ended.cpu
                count["right" if not wrong else "wrong"] += 1
                row.append(f"{'hangs' if ended.code is None else ended.code}{'!' if wrong else ''}")
                if wrong:
                    print(f"--- {fault.name}, {script}: {wrong}", flush=True)
            print(*row, sep="  ", flush=True)
            rows.append(row)
    table("exit codes", ["fault", *(SHORT[script] for script in scripts)], rows)
    print(f"\n{count['right']} of {count.total()} cells as they should be, {len(rows)} rows; "
          f"{cpu:.0f} CPU s in {time.monotonic() - begun:.0f} s")  # fmt: skip
    return bool(count["wrong"])


if __name__ == "__main__":
    sys.exit(main())
