"""The house: who may import whom, what stays light, and that no setting is a dead switch."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from slimtune.config import SCRIPTS, Config
from slimtune.settings.flags import section_fields

ROOT = Path(__file__).resolve().parents[1]
FINETUNE = ROOT / "finetune"
LIBRARY = FINETUNE / "slimtune"
FILES = sorted(FINETUNE.rglob("*.py"))

_WORDS = {"console", "errors", "masking", "wrapping"}
GROUND = {"config", "packages", "settings", "artifacts", "machine", "script"} | _WORDS
LIGHT = GROUND - {"machine"} | {"data", "prompts", "report"}
ROOMS = {"models", "inference", "pruning", "training", "evaluation", "export", "chat", "sample"}
ROOMS |= {"unpacking", "quantised"}
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets"}
# Each storey may use those below it.
_GROUND = {"config", "packages", "artifacts", "settings", "machine"} | _WORDS
_MODELS = _GROUND | {"models", "data", "prompts", "report"}
_INFERENCE = _MODELS | {"inference"}
MAY_USE = {
    "config": set(),
    "masking": set(),
    "errors": {"masking"},
    "wrapping": set(),
    "console": {"errors", "masking", "wrapping"},
    "packages": _WORDS,
    "settings": {"config", "artifacts"} | _WORDS,
    "machine": {"config", "packages"} | _WORDS,
    "artifacts": {"config", "machine"} | _WORDS,
    "script": {"config", "packages", "machine", "settings", "unpacking"} | _WORDS,
    "report": {"config", "artifacts"} | _WORDS,
    "data": {"config", "packages", "artifacts", "machine", "report"} | _WORDS,
    "prompts": {"artifacts"} | _WORDS,
    "models": _GROUND | {"prompts"},
    "inference": _MODELS,
    "pruning": _INFERENCE,
    "training": _INFERENCE,
    "evaluation": _INFERENCE,
    "export": _INFERENCE,
    "chat": _INFERENCE | {"evaluation"},
    "unpacking": _INFERENCE | {"export"},
    "quantised": _INFERENCE | {"export", "training"},
    "sample": _MODELS,
}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file: Path) -> frozenset[str]:
    """Full names of everything that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return frozenset(found)


def room_of(file: Path) -> str:
    """The room or root module of a library file: slimtune/data/rows.py -> data."""
    return file.relative_to(LIBRARY).parts[0].removesuffix(".py")


def library_files() -> list[Path]:
    return [file for file in FILES if LIBRARY in file.parents and file.parent != FINETUNE]


def used_rooms(file: Path) -> set[str]:
    """Rooms that a file imports; the catalogues, which hold words and numbers, are everybody's."""
    names = [name for name in imports(file) if name.startswith("slimtune.")]
    names = [name for name in names if not name.startswith("slimtune.config.catalogues")]
    return {name.split(".")[1] for name in names}


def test_the_check_itself_finds_imports() -> None:
    assert "artifacts" in used_rooms(FINETUNE / "train_lora.py")
    assert {room_of(file) for file in library_files()} >= LIGHT | ROOMS


@pytest.mark.parametrize("file", library_files(), ids=lambda f: str(f.relative_to(LIBRARY)))
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return
    strangers = used_rooms(file) - MAY_USE[room] - {room}
    assert not strangers, f"{room} must not use {strangers}"


def test_no_script_imports_a_script() -> None:
    for script in SCRIPTS:
        used = {name.split(".")[0] for name in imports(FINETUNE / f"{script}.py")}
        assert not used & set(SCRIPTS), script


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_the_ground_never_imports_torch(room: str) -> None:
    for file in library_files():
        if room_of(file) == room:
            assert not {name.split(".")[0] for name in imports(file)} & HEAVY, file


def test_what_only_some_systems_have_stays_in_one_room() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        named = any(word in text for word in ("fcntl", "resource", "msvcrt", "mallopt"))
        if LIBRARY / "machine" in file.parents or not named:
            continue
        assert not imports(file) & {"fcntl", "resource", "msvcrt"}, file
        for node in ast.walk(tree_of(file)):
            assert not (isinstance(node, ast.Attribute) and node.attr == "mallopt"), file


def test_the_library_renames_in_one_place() -> None:
    """Windows moves nothing that is open: machine/moving.py waits, and says who has it."""
    for file in library_files():
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Attribute) and file.name != "moving.py":
                named = isinstance(node.value, ast.Name) and f"{node.value.id}.{node.attr}"
                assert node.attr != "rename" and named not in ("os.replace", "shutil.move"), file


def test_no_trick_needs_torch() -> None:
    for file in (LIBRARY / "machine").glob("*.py"):
        heavy = {name.split(".")[0] for name in imports(file)} & HEAVY
        assert not heavy, file


def test_no_file_shadows_a_package_or_the_standard_library() -> None:
    taken = set(packages_distributions()) | set(sys.stdlib_module_names)
    at_root = [f for folder in (FINETUNE, LIBRARY) for f in folder.glob("*.py")]
    assert not {f.stem for f in at_root} & (taken - {"__init__"})
    assert not (FINETUNE / "__init__.py").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_ends_with_its_tail(script: str) -> None:
    text = (FINETUNE / f"{script}.py").read_text(encoding="utf-8")
    assert text.count("\n") < 90
    assert text.endswith("    from slimtune.script import run\n\n    run(main, __doc__)\n")
    doc = ast.get_docstring(ast.parse(text))
    assert f"python finetune/{script}.py" in doc
    assert "reads " in doc and "writes " in doc


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_at_once_from_any_directory_without_torch(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(FINETUNE / f"{script}.py"), "--help"]
    before = os.times().children_user
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and f"finetune/{script}.py" in done.stdout
    imported = set(re.findall(r"\| +(\w+)", done.stderr))
    assert "pydantic" in imported and not imported & HEAVY
    assert os.times().children_user - before < 1


def test_mistakes_in_the_settings_are_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lora: {rnak: 8}\n")
    flags = ["--config", str(tmp_path / "c.yaml"), "--learning-rate", "abc"]
    command = [sys.executable, "-X", "importtime", str(FINETUNE / "train_lora.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    words = [line for line in done.stderr.splitlines() if not line.startswith("import time")]
    assert "lora.rnak" in words[0] and "did you mean `rank`?" in words[2]
    assert "--learning-rate: abc" in words[3]
    assert not set(re.findall(r"\| +(\w+)", done.stderr)) & HEAVY


@pytest.mark.parametrize(
    ("script", "output"), [("train_lora", "lora_adapter"), ("model_pruning", "")]
)
def test_output_in_the_way_is_told_without_torch(script: str, output: str, tmp_path: Path) -> None:
    (tmp_path / output).mkdir(exist_ok=True)
    (tmp_path / output / "mine.txt").write_text("x")
    command = [sys.executable, "-X", "importtime", str(FINETUNE / f"{script}.py")]
    command += ["--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "holds files that no stage of SlimTune wrote" in done.stderr
    assert not set(re.findall(r"\| +(\w+)", done.stderr)) & HEAVY


SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in FILES)


@cache
def read_names() -> set[tuple[str, str]]:
    """(holder, name) of each `holder.name` in the source, but where a quotation mark follows."""
    return set(re.findall(r"\b(?=(\w+)\.(\w+)\b(?!\"))\w+", SOURCE))


# Names under which code holds a section, besides the section's own.
ALIASES = {"training": "settings", "lora": "settings", "distillation": "settings"}
ALIASES |= {"evaluation": "settings", "data": "settings"}


@pytest.mark.parametrize(
    "setting", [f"{s}.{f}" for s in Config.model_fields for f in section_fields(s)]
)
def test_every_setting_is_read_somewhere(setting: str) -> None:
    section, field = setting.split(".")
    holders = {section, ALIASES.get(section, section)}
    assert any((one, field) in read_names() for one in holders), f"{setting} has no effect"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_has_a_script_that_shows_it(script: str) -> None:
    assert all(entry.split(".")[0] in Config.model_fields for entry in SCRIPTS[script])
    shown = {entry for entries in SCRIPTS.values() for entry in entries}
    sections = {entry for entry in shown if "." not in entry}
    for section in Config.model_fields:
        for field in section_fields(section):
            assert section in sections or f"{section}.{field}" in shown, f"{section}.{field}"


def test_remote_code_pickles_and_shells_are_never_used() -> None:
    for danger in ("trust_remote_code=True", "yaml.load(", "pickle.load", "shell=True"):
        assert danger not in SOURCE, danger
    assert not re.search(r"torch\.load\((?![^)]*weights_only=True)", SOURCE)


# Files of under 60 lines, each with its reason; an `__init__` that only says what its room is needs
# none.
SHORT = {
    "__init__.py": "what is told before anything else can be imported",
    "chat/growing.py": "what a terminal shows, apart from the talk",
    "chat/side_by_side.py": "what a terminal shows, apart from the talk",
    "config/chinese.py": "the reader of one data file",
    "config/fields.py": "what every section is made of; sections and Config both import it",
    "data/examples.py": "what the page shows of rows, beside what it counts",
    "data/mixing.py": "one formula",
    "evaluation/answer_room.py": "one setting's auto, without torch",
    "export/proof/__init__.py": "read before the work, without torch",
    "inference/row_scores.py": "what llama.cpp's child scores by, apart from its batches",
    "machine/disks.py": "one question, asked by whatever writes much",
    "masking.py": "what all that is said passes, errors too",
    "models/kept.py": "memory for a batch, apart from the layers that it is kept for",
    "pruning/depth.py": "one of the four axes, a file each",
    "pruning/recovery_stage.py": "a stage, apart from what its layers learn",
    "pruning/refit.py": "one formula",
    "report/markdown.py": "text from outside made inert, for every page and card",
    "settings/foreign_flags.py": "the reader of one data file",
    "settings/__main__.py": "the entry point of python -m slimtune.settings",
    "wrapping.py": "one question, asked by help, chat and whatever is said on a terminal",
    "unpacking/vocabulary_check.py": "the question that decides, apart from what is asked about",
    "training/rates.py": "one table with its sources",
    "training/soundness.py": "one question, asked of learner and teacher",
}


def test_a_short_file_has_a_reason() -> None:
    short = set()
    for file in library_files():
        tree = tree_of(file)
        does = [node for node in tree.body if not isinstance(node, ast.Expr | ast.ImportFrom)]
        exports = file.name == "__init__.py" and all(isinstance(one, ast.Assign) for one in does)
        if file.read_text(encoding="utf-8").count("\n") < 60 and does and not exports:
            short.add(file.relative_to(LIBRARY).as_posix())
    assert short == set(SHORT)


def test_no_file_name_stands_in_two_rooms() -> None:
    names = [
        file.name for file in library_files() if file.name not in ("__init__.py", "__main__.py")
    ]
    assert len(names) == len(set(names))
