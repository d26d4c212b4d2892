"""What happens to inputs and settings: makers of rows for fault_matrix.py."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from fault_places import Make, as_nobody
from forked import Cell
from hostile import ATTACKS, write_record

Change = Callable[[Path], None]
NameOf = Callable[[str], str]  # of a script: the file that it reads
TOKEN = "hf_" + "abcdEFGH1234567890"
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMB = "{{ 'x' * 10000000000 }}"
MACRO = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"


def rows_of(script: str) -> str:
    read = {"prepare_data": "raw.json", "evaluate_model": "rows/train_test.jsonl"}
    return read.get(script, "rows/train_train.jsonl")


def gone(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def an_io_error(file: Path) -> None:
    file.unlink()
    file.symlink_to("/proc/self/mem")


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def brackets(file: Path) -> None:
    file.write_bytes(b"[" * 100_000)


def half_zeros(file: Path) -> None:
    """As a disk leaves it that lost the end of a file."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def values(**changes: object) -> Change:
    """Other values in a JSON file."""

    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")

    return change


def text(content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content

    def change(file: Path) -> None:
        file.write_bytes(data)

    return change


def to(name: str | NameOf, change: Change) -> Make:
    """A change of one input; of a model's file both models have it."""

    def make(cell: Cell) -> None:
        named = name if isinstance(name, str) else name(cell.script)
        change(cell.folder / named)
        if named.startswith("base/"):
            change(cell.folder / named.replace("base/", "teacher/", 1))

    return make


def with_text(change: Change) -> Make:
    """The plain text that a student reads beside its rows."""

    def make(cell: Cell) -> None:
        cell.words += ["--text-data", "text.txt"]
        (cell.folder / "text.txt").write_text("Once upon a time.\n" * 40, "utf-8")
        change(cell.folder / "text.txt")

    return make


def unreadable(name: str | NameOf) -> Make:
    def make(cell: Cell) -> None:
        as_nobody(cell)
        os.chmod(cell.folder / (name if isinstance(name, str) else name(cell.script)), 0)

    return make


def without_pieces(cell: Cell) -> None:
    """Only tokenizer.json is left, and its values are of other types."""
    for name in ("base", "teacher"):
        (cell.folder / name / "tokenizer.model").unlink()
        values(model=[1], added_tokens="x", normalizer=7)(cell.folder / name / "tokenizer.json")


def unfinished(cell: Cell) -> None:
    for name in ("base", "teacher", "rows"):
        (cell.folder / name).rename(cell.folder / f"{name}.partial")
    (cell.folder / "raw.json").unlink()


def pickled(file: Path) -> None:
    """Weights as a pickle that runs a program when it is read."""
    import torch

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {file.parents[1]}/CANARY",)

    file.unlink()
    name = "adapter_model.bin" if "adapter" in file.name else "pytorch_model.bin"
    torch.save({"w": Evil()}, file.with_name(name))


def index_outside(file: Path) -> None:
    file.rename(file.parents[1] / f"outside-{file.parent.name}.safetensors")
    index = {
        "metadata": {},
        "weight_map": {"model.norm.weight": f"../outside-{file.parent.name}.safetensors"},
    }
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def with_number(number: float, *, everywhere: bool = False) -> Change:
    """One weight, or all of them, another number."""

    def change(file: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(file)
        for name in sorted(weights) if everywhere else [sorted(weights)[-1]]:
            weights[name].view(-1)[slice(None) if everywhere else -1] = number
        save_file(weights, file, {"format": "pt"})

    return change


def foreign_code(file: Path) -> None:
    """A model that brings its own Python."""
    entry = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    values(auto_map=entry, model_type="evilmodel", architectures=["EvilModel"])(file)
    (file.parent / "evil.py").write_text(f"open('{file.parents[1]}/CANARY', 'w')\n", "utf-8")


def template(content: str) -> Make:
    def make(cell: Cell) -> None:
        for name in ("base", "teacher", "adapter"):
            (cell.folder / name / "chat_template.jinja").write_text(content, "utf-8")
        cell.words += ["--prompt-template", "tokenizer"]

    return make


def foreign_record(**changes: object) -> Make:
    """A run.json in every input, of our form but for what is changed."""

    def make(cell: Cell) -> None:
        for name in ("base", "teacher", "adapter"):
            files = {path.name: path.read_bytes() for path in (cell.folder / name).iterdir()}
            write_record(cell.folder / name / "run.json", files, **changes)
        files = {path.name: path.read_bytes() for path in (cell.folder / "rows").iterdir()}
        write_record(cell.folder / "rows/train_run.json", files, **changes)

    return make


def attacked(cell: Cell) -> None:
    """NAME.ready of every kind in the folders that are read; `victim` is the user's."""
    victim = cell.folder / "victim"
    victim.write_bytes(b"the user's own")
    (cell.folder / "outside").mkdir()
    for attack in ATTACKS:
        attack(cell.folder / "rows", attack.__name__)
        attack(cell.folder / "base", attack.__name__)


def setting(content: str | bytes) -> Make:
    return to("config.yaml", text(content))


def words(*more: str) -> Make:
    return lambda cell: cell.words.extend(more)


def secret(cell: Cell) -> None:
    cell.words += ["--base-model" if cell.script != "create_sample_data" else "--kind", TOKEN]
    cell.after.append(lambda end: "the token was printed" if TOKEN in end.out + end.err else "")


def hidden(*modules: str) -> Make:
    def make(cell: Cell) -> None:
        cell.before.append(lambda: sys.modules.update(dict.fromkeys(modules)))

    return make


def elsewhere(cell: Cell) -> None:
    """A Hub id, and no network."""
    flags = {"model_pruning": "--model-path", "knowledge_distillation": "--student-model"}
    flags["convert_to_gguf"] = "--model-path"
    cell.words += [flags.get(cell.script, "--base-model"), "nobody/no-such-model"]
