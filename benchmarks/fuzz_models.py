"""Damaged models, adapters, records, checkpoints and GGUF files through the scripts that read them.

    python benchmarks/fuzz_models.py --seconds 300 --seed 1 --keep /tmp/found

Each round changes one file of a tiny project: values of its JSON, or bytes of a header. The script
then runs in a fork, most often dry. Whatever the file, it ends well or with exit 2 to 5 and three
lines; what ends otherwise is a finding: it is printed, and its file kept.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from forked import Cell, Ended, make_home
from hostile import write_record

from slimtune.artifacts.files import seal, write_json

MODEL = ("train_lora", "model_pruning", "knowledge_distillation", "train_pruned_distilled",
         "evaluate_model", "convert_to_gguf")  # fmt: skip
READS_TOKENIZER = (*MODEL, "prepare_data")
GGUF, IMATRIX, CHECKPOINT = "model.gguf", "imatrix.gguf", "new/checkpoints"
# File -> the scripts that read it, and whether a dry run does. Records are those of `recorded`.
FILES: dict[str, tuple[tuple[str, ...], bool]] = {
    "base/config.json": (MODEL, True),
    "base/generation_config.json": (READS_TOKENIZER, True),
    "base/tokenizer.json": (READS_TOKENIZER, True),
    "base/tokenizer_config.json": (READS_TOKENIZER, True),
    "base/tokenizer.model": (READS_TOKENIZER, True),
    "base/chat_template.jinja": (READS_TOKENIZER, True),
    "base/model.safetensors": (MODEL, True),
    "base/model.safetensors.index.json": (MODEL, True),
    "base/run.json": (MODEL, True),
    "adapter/adapter_config.json": (("evaluate_model", "convert_to_gguf"), False),
    "adapter/adapter_model.safetensors": (("evaluate_model", "convert_to_gguf"), False),
    "adapter/run.json": (("evaluate_model", "convert_to_gguf"), False),
    "rows/train_run.json": ((*MODEL[:4], "convert_to_gguf"), True),
    "new/run.json": (MODEL, True),
    f"{CHECKPOINT}/trainer_state.json": (("train_lora",), False),
    f"{CHECKPOINT}/adapter_config.json": (("train_lora",), False),
    f"{CHECKPOINT}/checkpoint.json": (("train_lora",), True),
    "new/checkpoints/conditions.json": (("train_lora",), True),
    GGUF: (("evaluate_model", "train_lora"), False),
    IMATRIX: (("convert_to_gguf",), False),
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 1e308, float("nan"), float("inf"), -0.0, 2**31, 2**63,
    10**30, "", " ", "x", "7", "0.5", "\ud800", "\0", "../x", "/etc/passwd", "NaN", "a" * 5000,
    [], {}, [None], [1], [[]], ["x"], {"a": None}, {"a": {"a": {}}}, [[[["x"]]]], {"x": [1, "y"]},
)  # fmt: skip
KNOWN = ("rope_parameters", "rope_scaling", "quantization_config", "auto_map", "dtype", "head_dim",
         "torch_dtype", "vocab_size", "layer_types", "pad_token_id", "eos_token_id", "model_type",
         "chat_template", "added_tokens", "sliding_window", "tokenizer_class", "metrics", "path",
         "system_prompt", "alpha_pattern", "rank_pattern", "use_dora", "log_history")  # fmt: skip
_HEADER = 4096  # bytes: what of a binary file is changed lies mostly there


class Rounds:
    """The changes of one run: everything random comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def value(self, value: Any, likely: float) -> Any:
        """Here and there another value, another name, or none."""
        if self.chance.random() < likely:
            return self.chance.choice(ODD)
        if isinstance(value, dict):
            changed = {n: self.value(one, likely) for n, one in value.items()}
            if changed and self.chance.random() < likely:
                changed.pop(self.chance.choice(list(changed)))
            if self.chance.random() < likely:
                changed[self.chance.choice(KNOWN)] = self.chance.choice(ODD)
            return changed
        if isinstance(value, list) and len(value) < 1000:
            return [self.value(one, likely) for one in value]
        return value

    def one_value(self, value: Any) -> Any:
        """One place of it changed, however large it is."""
        if not isinstance(value, dict | list) or not value or self.chance.random() < 0.15:
            return self.chance.choice(ODD)
        changed = dict(value) if isinstance(value, dict) else list(value)
        place = self.chance.choice(list(value)) if isinstance(value, dict) else None
        if place is None:
            place = self.chance.randrange(len(value))
        changed[place] = self.one_value(value[place])
        return changed

    def changed_json(self, text: str) -> bytes:
        value = json.loads(text)
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            value = self.one_value(value)
        if self.chance.random() < 0.3:
            value = self.value(value, self.chance.choice((0.02, 0.1, 0.3)))
        return json.dumps(value).encode()

    def changed_bytes(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.chance.choice((1, 1, 2, 4, 16))):
            end = len(changed) if self.chance.random() < 0.2 else min(_HEADER, len(changed))
            at = self.chance.randrange(end + 1)
            until = min(len(changed), at + self.chance.choice((0, 1, 1, 2, 8, 64, 1000)))
            new = self.chance.choice((b"", b"\0", b"\xff" * 8, b"\x7f", b"[" * 999, b"{{", b"-1",
                                      b"9" * 30, self.chance.randbytes(4)))  # fmt: skip
            changed[at:until] = new if self.chance.random() < 0.5 else new[: until - at]
        return bytes(changed)

    def change(self, file: Path) -> None:
        data = file.read_bytes()
        if file.suffix == ".safetensors":  # its header, and the length in front of it
            length = int.from_bytes(data[:8], "little")
            if self.chance.random() < 0.7:
                header = self.changed_json(data[8 : 8 + length].decode())
                file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
                return
        if file.suffix == ".json" and self.chance.random() < 0.9:
            file.write_bytes(self.changed_json(data.decode("utf-8")))
        else:
            file.write_bytes(self.changed_bytes(data))


def complete(home: Path) -> None:
    """What a round may need beside the project: a GGUF, an imatrix, a stopped training."""
    convert = Cell(home, "convert_to_gguf")
    convert.words += ["--imatrix", "auto", "--quantization", "Q4_0", "--verify", "off"]
    assert convert.run().code == 0
    stopped = Cell(home, "train_lora")
    stopped.words += ["--evaluations-per-epoch", "4"]

    def at_a_checkpoint(child: int) -> None:
        while not list(stopped.folder.glob("new/checkpoints/checkpoint-[0-9]/checkpoint.json")):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)

    stopped.during = at_a_checkpoint
    stopped.run()
    shutil.copytree(stopped.folder / "new", home / "stopped")
    for given in ("given", "recorded"):
        shutil.copy(convert.folder / "new/tiny-Q4_0.gguf", home / given / GGUF)
        shutil.copy(next(convert.folder.glob("new/*imatrix*.gguf")), home / given / IMATRIX)
    for cell in (convert, stopped):
        cell.close()


def prepared(home: Path, script: str, file: str, rounds: Rounds) -> tuple[Cell, Path]:
    """A cell whose script reads `file`, and the file, not yet changed."""
    cell = Cell(home, script, "recorded" if "run.json" in file else "given")
    path = cell.folder / file
    if file == "base/model.safetensors.index.json":
        names = {"model.norm.weight": "model.safetensors", "lm_head.weight": "model.safetensors"}
        path.write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": names}), "utf-8")
    elif file == "base/run.json":
        write_record(path, {one.name: one.read_bytes() for one in path.parent.iterdir()})
    elif file == "new/run.json":  # of another run in the place of the output
        cell.words.append("--overwrite")
        output = cell.final if not cell.final.suffix else cell.final.parent
        output.mkdir(parents=True, exist_ok=True)
        path = output / ("run.json" if output == cell.final else f"{cell.final.stem}_run.json")
        shutil.copy(cell.folder / "adapter/run.json", path)
    elif file.startswith("new/checkpoints"):
        shutil.copytree(home / "stopped", cell.folder / "new")
        cell.words += ["--evaluations-per-epoch", "4", "--resume"]
        name = file.rpartition("/")[2]
        path = next(iter(sorted(cell.folder.glob(f"new/checkpoints/**/{name}"))))
    elif file == GGUF:
        flag = "--models" if script == "evaluate_model" else "--base-model"
        cell.words += [flag, GGUF]
    elif file == IMATRIX:
        cell.words += ["--imatrix", IMATRIX, "--quantization", "Q4_0", "--verify", "off"]
    elif file.startswith("adapter") and script == "convert_to_gguf":
        cell.words += ["--lora-model", "adapter", "--verify", "off"]
        cell.words += rounds.chance.choice(([], ["--lora-as", "adapter"]))
    elif file.startswith("adapter") and rounds.chance.random() < 0.4:
        cell.words += ["--merge", "--output-dir", "new/merged"]
    return cell, path


def one_round(home: Path, rounds: Rounds) -> tuple[str, str, Cell, Path]:
    """(which file and how it ended, the fault or nothing, the cell, the file)."""
    file = rounds.chance.choice(list(FILES))
    scripts, dry = FILES[file]
    script = rounds.chance.choice(scripts)
    cell, path = prepared(home, script, file, rounds)
    rounds.change(path)
    if file.startswith(CHECKPOINT) and path.name not in ("checkpoint.json", "conditions.json"):
        manifest = path.with_name("checkpoint.json")  # a stranger seals what he has changed
        told = json.loads(manifest.read_text("utf-8"))
        write_json(manifest, told | {"files": seal(path.parent, without=manifest.name)})
    if dry and rounds.chance.random() < 0.75:
        cell.words.append("--dry-run")
    ended = cell.run()
    return f"{file}: {ended.code}", fault_of(ended), cell, path


def fault_of(ended: Ended) -> str:
    lines = ended.err.splitlines()
    if ended.code not in (0, 2, 3, 4, 5) or "Traceback" in ended.err:
        return f"exit {ended.code}: {ended.err[-1500:]}"
    if ended.code == 4 and "not enough" not in ended.err and "out of memory" not in ended.err:
        return f"exit 4: {ended.err[-600:]}"
    if ended.code and [one[:7] for one in lines[-4:-1]] != ["error: ", "  why: ", "  do:  "]:
        return f"not three lines: {lines[-4:]}" if ended.code != 2 else ""
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="files whose names hold this word")
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    options = parser.parse_args()
    for file in [file for file in FILES if options.only not in file]:
        del FILES[file]
    rounds, ends, findings = Rounds(options.seed), Counter(), Counter()
    with tempfile.TemporaryDirectory() as name:
        home = make_home(Path(name))
        complete(home)
        begun = time.monotonic()
        while time.monotonic() - begun < options.seconds:
            end, fault, cell, path = one_round(home, rounds)
            ends[end] += 1
            if fault:
                lines = [line for line in fault.splitlines() if line.startswith("error")] or [fault]
                findings[f"{end} {lines[-1][:100]}"] += 1
                if findings[f"{end} {lines[-1][:100]}"] == 1:
                    print(f"--- {end}, {' '.join(cell.words)}\n{fault}", flush=True)
                    if options.keep and path.exists():
                        options.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, options.keep / f"{len(findings):03}-{path.name}")
            cell.close()
        seconds = time.monotonic() - begun
    for end, count in sorted(ends.items()):
        print(f"{count:7,}  {end}")
    print(f"{ends.total():,} files in {seconds:.0f} s, {findings.total()} faults")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
