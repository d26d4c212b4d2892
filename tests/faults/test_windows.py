"""Windows, as far as Linux can play it: what is open is neither moved nor deleted.

The eight scripts run beside finished output, so that each writes, moves and replaces what it can.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import files_under, refused, run, succeeds
from windows_files import like_windows

from slimtune.artifacts import stage_folder
from slimtune.config import Config, Options
from slimtune.console import quoted
from slimtune.data import writing
from slimtune.errors import ResourceError
from slimtune.machine import moving

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("in_process"),
    pytest.mark.skipif(sys.platform != "linux", reason="open files are looked up in /proc"),
]

STAGES = [
    ("prepare_data",),
    ("train_lora", "--epochs", 1),
    ("evaluate_model", "--max-rows", 4),
    ("evaluate_model", "--merge"),
    ("model_pruning",),
    ("knowledge_distillation", "--epochs", 1),
    ("convert_to_gguf", "--create-modelfile"),
    ("train_pruned_distilled", "--stages", "prune,cache,distil,lora,merge")
    + ("--epochs", 1, "--distillation-epochs", 1),
]


@pytest.fixture(scope="module")
def finished(project, distilled, gguf, tmp_path_factory) -> Path:
    """A copy of the project, with what every script but the last has written."""
    return shutil.copytree(project, tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(moving, "_PATIENCE", 0.2)


@contextmanager
def another_program(file: Path) -> Iterator[int]:
    """The id of a process that has the file open, as Excel has a table that it shows."""
    code = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield child.pid
        child.stdin.close()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: "-".join(map(str, stage[:2])))
def test_no_script_moves_or_deletes_what_it_has_open(stage, finished, monkeypatch) -> None:
    monkeypatch.chdir(finished)
    script, *words = stage
    with like_windows() as refused_here:
        succeeds(script, "--config", finished / "config.yaml", *words, "--overwrite")
    assert refused_here == []
    assert not list(finished.rglob("*.partial")) and not list(finished.rglob("*.ready"))


def test_the_sample_is_written_twice(tmp_path) -> None:
    words = ("--rows", 60, "--text-lines", 10, "--output-dir", tmp_path / "data")
    words += ("--models-dir", tmp_path / "sample")
    with like_windows() as refused_here:
        succeeds("create_sample_data", *words)
        succeeds("create_sample_data", *words, "--overwrite")
    assert refused_here == []


def test_rows_that_are_refused_leave_no_open_file(project, settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "write_outputs", lambda *_: 1 / 0)
    with like_windows() as refused_here:
        assert run("prepare_data", *settings, "--output-dir", tmp_path / "out").code == 1
    assert refused_here == [] and not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.usefixtures("impatient")
def test_a_table_that_is_shown_elsewhere_costs_no_work(settings, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("prepare_data", *settings, "--output-dir", out)
    succeeds(*words)
    shown = out / "train_test.jsonl"
    with another_program(shown) as program, like_windows(program):
        said = refused(4, "train_test.jsonl: in use", *words, "--overwrite", "--test-ratio", 0.3)
        assert f"process {program}" in said[1] and "has " in said[1] and "close it" in said[2]
    before = files_under(out)
    assert "train.ready/train_test.jsonl" in before
    ran = run(*words)  # as the error said: what waits is put in its place
    assert "is finished now" in ran.err and "exists already" in ran.err
    after = files_under(out)
    assert after["train_test.jsonl"] == before["train.ready/train_test.jsonl"]
    assert not any("ready" in name for name in after)


def written(final: Path, word: str) -> None:
    config = Config()
    config._options = Options(overwrite=True)
    with stage_folder("model_pruning", final, config) as stage:
        (stage.folder / "word").write_text(word)


def word_in(folder: Path) -> str:
    return (folder / "word").read_text()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("open_in", ["out", "out.partial"])
def test_a_folder_in_use_keeps_both_the_old_and_the_new(open_in, tmp_path, monkeypatch) -> None:
    final = tmp_path / "out"
    written(final, "old")
    opened = final / "word"
    if open_in == "out.partial":  # a scanner that looks at what is new
        (tmp_path / "scanned").touch()
        opened = tmp_path / "scanned"
        monkeypatch.setattr("windows_files.opened", lambda one: {str(tmp_path / "out.partial/x")})
    with another_program(opened) as program, like_windows(program):
        with pytest.raises(ResourceError) as error:
            written(final, "new")
        assert "rename" in error.value.cure and "whole in there" in error.value.cure
    assert (word_in(final), word_in(tmp_path / "out.partial")) == ("old", "new")
    assert (tmp_path / "out.partial/run.json").is_file()
    assert not list(tmp_path.glob(".out.*/"))
    written(final, "newer")
    assert word_in(final) == "newer"


def test_who_is_quicker_than_the_patience_is_waited_for(tmp_path, monkeypatch) -> None:
    final, program = tmp_path / "out", []
    written(final, "old")
    pauses: list[float] = []

    def close(pause: float) -> None:
        pauses.append(pause)
        program[0].__exit__(None, None, None)

    program.append(another_program(final / "word"))
    with like_windows(program[0].__enter__()):
        monkeypatch.setattr(moving.time, "sleep", close)
        written(final, "new")
    assert word_in(final) == "new" and len(pauses) == 1


def test_a_terminal_that_stands_in_the_folder_is_named(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", "print('here', flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path / "out", **pipes) as child:
        child.stdout.readline()
        assert f"process {child.pid}" in moving._user_of(tmp_path / "out")
        child.stdin.close()
    assert moving._user_of(tmp_path / "out") is None


def test_what_unix_refuses_is_not_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(moving.time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(FileNotFoundError):
        moving.move(tmp_path / "none", tmp_path / "other")


def as_a_program_reads(line: str) -> str:
    """The one word of a command line by the rules of Microsoft's C runtime (parsing argv)."""
    word, quotes, backslashes = "", 0, 0
    for char in line:
        if char == "\\":
            backslashes += 1
            continue
        if char != '"':
            word += "\\" * backslashes + char
        else:
            word += "\\" * (backslashes // 2)
            if backslashes % 2:
                word += char
            else:
                quotes += 1
        backslashes = 0
    assert quotes in (0, 2)
    return word + "\\" * backslashes


@pytest.mark.parametrize(
    ("word", "pasted"),
    [
        (r"models\finetuned", r"models\finetuned"),
        (r"C:\数据\a-b_1.csv", r"C:\数据\a-b_1.csv"),
        (r"C:\My Models\base", r'"C:\My Models\base"'),
        ("a.jsonl:2,b.jsonl", '"a.jsonl:2,b.jsonl"'),  # PowerShell would make two words of it
        ("50%", '"50%"'),
        ("D:\\my data\\", '"D:\\my data\\\\"'),
        ('say "no"', '"say \\"no\\""'),
        ("", '""'),
    ],
)
def test_a_word_pastes_into_cmd_and_powershell(word, pasted) -> None:
    assert quoted(word, windows=True) == pasted
    assert as_a_program_reads(pasted) == word


def test_what_powershell_would_replace_is_quoted_for_it() -> None:
    assert quoted("it's $HOME", windows=True) == "'it''s $HOME'"
