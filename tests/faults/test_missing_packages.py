"""A package that is missing costs a line that installs it, and never a training that had ended.

Hidden in a process of its own by an entry of None in `sys.modules`, as Python itself does it: both
`import` and `find_spec` then say that it is not there.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from running import refused, succeeds

from slimtune import packages
from slimtune.config import SCRIPTS
from slimtune.packages import GROUND, NEEDED, REQUIREMENTS, WITHOUT, pip_line

pytestmark = pytest.mark.faults

_HIDING = """
import runpy, sys
hidden, folder, script, *words = sys.argv[1:]
sys.path.insert(0, folder)
sys.modules |= dict.fromkeys(hidden.split(","))
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
"""


def without(hidden: str, script: str, *words: object) -> subprocess.CompletedProcess:
    file = importlib.import_module(script).__file__
    told = [hidden, str(Path(file).parent), file, *map(str, words)]
    return subprocess.run([sys.executable, "-c", _HIDING, *told], capture_output=True, text=True)


def says_what_to_install(done: subprocess.CompletedProcess, module: str) -> None:
    assert done.returncode == 4, done.stderr
    what, why, cure = done.stderr.splitlines()[-4:-1]
    assert what.startswith("error: ") and "not installed" in what and why.startswith("  why: ")
    assert "-m pip install -r " in cure and "requirements.txt" in cure
    assert pip_line(module).split()[-1] in cure
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", GROUND)
def test_help_without_what_reads_the_settings(module: str) -> None:
    says_what_to_install(without(module, "train_lora", "--help"), module)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_needs_pydantic_to_say_that_it_is_missing(script: str) -> None:
    says_what_to_install(without("pydantic", script, "--help"), "pydantic")


@pytest.mark.parametrize("script", [script for script in SCRIPTS if NEEDED[script]])
def test_what_a_script_needs_late_is_asked_for_first(script: str, monkeypatch, tmp_path) -> None:
    importlib.import_module("matplotlib.figure")  # which `running` wants, and which wants numpy
    for module in NEEDED[script]:
        with monkeypatch.context() as hiding:
            hiding.setitem(sys.modules, module, None)
            said = refused(4, "not installed", script, "--config", settings_in(tmp_path))
            assert pip_line(module).split()[-1] in said[-1]


def settings_in(folder: Path) -> Path:
    """Settings whose inputs are not there: nobody comes so far as to look for them."""
    (folder / "config.yaml").write_text("model: {base_model: ./none}\n", encoding="utf-8")
    return folder / "config.yaml"


def test_all_that_is_missing_is_told_together(monkeypatch, tmp_path) -> None:
    for module in ("torch", "peft"):
        monkeypatch.setitem(sys.modules, module, None)
    said = refused(4, "torch, peft: not installed", "train_lora", "--config", settings_in(tmp_path))
    assert "torch==" in said[-1] and "peft==" in said[-1]


def test_a_module_that_no_table_knows_is_no_bug_either(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "slimtune.data.preparation", None)
    monkeypatch.setattr("slimtune.script.read_settings", lambda *_: __import__("no_such_package"))
    refused(4, "no_such_package: not installed", "prepare_data")


def test_a_package_that_does_not_load(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libcudart.so.13: cannot open shared object file", name="torch._C")

    monkeypatch.setattr("slimtune.script.read_settings", broken)
    said = refused(4, "torch: installed, and cannot be loaded", "prepare_data")
    assert "libcudart" in said[1] and "pip install -r" in said[2]


def test_every_package_of_the_tables_is_pinned() -> None:
    """What pip is told to install is a line of requirements.txt, or comes with one."""
    pinned = REQUIREMENTS.read_text(encoding="utf-8")
    optional = {module for entries in WITHOUT.values() for module, _ in entries}
    brought = {"numpy", "tokenizers"}  # by torch and transformers
    for module in {*GROUND, *optional, *(one for some in NEEDED.values() for one in some)}:
        assert packages.is_installed(module), module
        assert module in brought or pip_line(module).split()[-1] in pinned, module


def test_rows_are_prepared_without_pictures_and_similar_rows(project, tmp_path, monkeypatch):
    from slimtune.data import similarity

    similarity._has_hashes.cache_clear()
    monkeypatch.setitem(sys.modules, "rensa", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ("--config", project / "config.yaml", "--output-dir", tmp_path, "--similarity", 0.8)
    ran = succeeds("prepare_data", *words)
    similarity._has_hashes.cache_clear()
    assert "caution: the search for similar rows left out: rensa is not installed" in ran.err
    assert "caution: pictures left out: matplotlib is not installed" in ran.err
    assert (tmp_path / "train_train.jsonl").stat().st_size
    assert not (tmp_path / "data_report.png").exists()


def test_a_comparison_without_sacrebleu(project, rows, tmp_path, monkeypatch, in_process) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    words = ("--lora-model", "null", "--max-rows", 2, "--output", tmp_path / "results.csv")
    ran = succeeds("evaluate_model", "--config", project / "config.yaml", *words)
    assert "caution: BLEU and chrF left out: sacrebleu is not installed" in ran.err
    report = (tmp_path / "training_report.md").read_text(encoding="utf-8")
    assert "ROUGE-L" in report and "BLEU `" not in report
    assert (tmp_path / "report.html").stat().st_size
