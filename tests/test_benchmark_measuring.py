"""benchmarks/measuring.py: a child's memory counts, and looking costs little."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("measuring")


def test_all_processes_are_searched_at_every_tenth_look(measuring, monkeypatch) -> None:
    searched = []
    monkeypatch.setattr(measuring, "_with_children", lambda pid: searched.append(pid) or [])
    tree = measuring._Tree(7)
    assert [tree.resident() for _ in range(21)] == [0] * 21
    assert searched == [7, 7, 7]


def test_the_memory_of_a_child_counts(measuring) -> None:
    code = "held = bytearray(200_000_000); print('held', flush=True); input()"
    words, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout.readline() == "held\n"
        tree = measuring._Tree(os.getpid())
        both = tree.resident()
        alone = measuring._pages(tree._known[0], "pss")
        child.communicate("\n")
    assert both - alone > 200e6
    assert tree.resident() < both - 190e6  # one that has ended weighs nothing


def test_a_child_is_not_said_to_weigh_what_its_parent_did(measuring) -> None:
    code = """
import sys
from measuring import measure
held = bytearray(300_000_000)
print(measure([sys.executable, "-c", "pass"]).megabytes)
"""
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    assert 0 <= float(ran.stdout) < 150
