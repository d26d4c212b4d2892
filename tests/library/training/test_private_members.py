"""transformers.Trainer's private members: few, each with its reason, and named when one is gone."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

import slimtune.training
from slimtune.training.trainer import PRIVATE, SlimTrainer

FILES = sorted(Path(slimtune.training.__file__).parent.glob("*.py"))
# What we rely on: name and parameters, without self.
SIGNATURES = {
    "_save_checkpoint": ["model", "trial"],
    "_save_rng_state": ["output_dir"],
    "_clip_grad_norm": ["model"],
}


def theirs() -> set[str]:
    """Private names of the Trainer and of its arguments: methods, and what is set on instances."""
    source = inspect.getsource(Trainer) + inspect.getsource(TrainingArguments)
    set_on_instances = set(re.findall(r"self\.(_[a-z]\w*)", source))
    methods = {*dir(Trainer), *dir(TrainingArguments)}
    return {name for name in methods | set_on_instances if re.match(r"_[a-z]", name)}


def private_names(file: Path) -> set[str]:
    """Private members that a file defines in a class, or reads or sets on anything."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = [one for node in classes for one in node.body if isinstance(one, ast.FunctionDef)]
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {one.name for one in functions} | {one.attr for one in attributes}
    return {name for name in names if re.match(r"_[a-z]", name)}


def keywords(file: Path) -> set[str]:
    """Names of keyword arguments in the calls of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_trainer_still_has_the_member_as_it_was(name: str) -> None:
    member = getattr(Trainer, name, None)
    assert member is not None, f"this transformers has no Trainer.{name}: {PRIVATE[name]}"
    found = [*inspect.signature(member).parameters][1:]
    assert found == SIGNATURES[name], f"Trainer.{name} takes {found} now: {PRIVATE[name]}"


def test_every_private_member_has_its_reason() -> None:
    assert PRIVATE.keys() == SIGNATURES.keys()
    assert all(
        reason.split(":")[0] in ("replaced", "called", "extended") for reason in PRIVATE.values()
    )
    for name, reason in PRIVATE.items():
        assert (name in vars(SlimTrainer)) == (not reason.startswith("called")), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_other_private_member_is_used(file: Path) -> None:
    used = private_names(file) & theirs()
    assert used <= PRIVATE.keys(), f"{file.name} leans on {used - PRIVATE.keys()} of the Trainer"
    assert not {name for name in keywords(file) if name.startswith("_")}


def test_the_check_itself_finds_members(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("class A:\n    def _save(self): arguments._n_gpu = 1\n")
    assert private_names(tmp_path / "x.py") & theirs() == {"_save", "_n_gpu"}
