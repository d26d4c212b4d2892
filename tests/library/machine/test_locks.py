"""One writer an output: who holds it, free after kill -9, nobody else's file touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimtune.console import LockedError, SettingsError
from slimtune.machine.locks import only_writer

FINETUNE = Path(__file__).resolve().parents[3] / "finetune"
HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from slimtune.machine.locks import only_writer
with only_writer(Path(sys.argv[1]), "noon", "a long run"):
    print("mine", flush=True)
    sys.stdin.read()
"""


def taken(output: Path, command: str = "train_lora.py --epochs 3"):
    return only_writer(output, since="noon", command=command)


def another_process(output: Path) -> subprocess.Popen:
    """One that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(output), str(FINETUNE)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "mine\n"
    return child


def test_the_second_is_told_who_holds_it(tmp_path) -> None:
    with taken(tmp_path / "out"), pytest.raises(LockedError) as error, taken(tmp_path / "out"):
        pass
    assert error.value.why == f"held by process {os.getpid()} since noon: train_lora.py --epochs 3"


def test_another_output_is_free_and_so_is_this_one_afterwards(tmp_path) -> None:
    with taken(tmp_path / "out"), taken(tmp_path / "other"):
        pass
    with taken(tmp_path / "out"):
        pass


def test_the_lock_of_another_process_is_free_after_kill_9(tmp_path) -> None:
    output = tmp_path / "out"
    with another_process(output) as child:
        with pytest.raises(LockedError, match=f"process {child.pid} since noon: a long run"):
            taken(output).__enter__()
        child.kill()
    with (
        taken(output, "mine now"),
        pytest.raises(LockedError, match=f"process {os.getpid()} since noon: mine now"),
    ):
        taken(output).__enter__()


def test_whoever_is_refused_takes_nothing_from_the_holder(tmp_path) -> None:
    with taken(tmp_path / "out"):
        for _ in range(2):
            with pytest.raises(LockedError, match=f"process {os.getpid()}"):
                taken(tmp_path / "out").__enter__()


def test_an_error_inside_frees_it_and_leaves_only_the_lock(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), taken(tmp_path / "out"):
        raise ZeroDivisionError
    assert {file.name for file in tmp_path.iterdir()} <= {".out.lock"}
    with taken(tmp_path / "out"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(tmp_path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    (tmp_path / ".out.lock").symlink_to(mine)
    with pytest.raises(SettingsError, match="cannot be locked") as error:
        taken(tmp_path / "out").__enter__()
    assert "link" in error.value.why
    assert mine.read_text() == "years of work"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_holders_file_that_is_a_link_is_left_alone(tmp_path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("process 1 of my thesis")
    holder = tmp_path / ".out.holder.lock"
    holder.symlink_to(mine)
    with (
        taken(tmp_path / "out"),
        pytest.raises(LockedError, match="an unknown process"),
        taken(tmp_path / "out"),
    ):
        pass
    assert holder.is_symlink() and mine.read_text() == "process 1 of my thesis"


@pytest.mark.parametrize("name", [".out.lock", ".out.holder.lock"])
def test_what_somebody_else_wrote_there_stays(name, tmp_path) -> None:
    (tmp_path / name).write_text("not of SlimTune")
    with taken(tmp_path / "out"):
        pass
    assert (tmp_path / name).read_text() == "not of SlimTune"


def test_a_folder_in_its_place_is_no_bug_of_ours(tmp_path) -> None:
    (tmp_path / ".out.lock").mkdir()
    with pytest.raises(SettingsError, match="cannot be locked"), taken(tmp_path / "out"):
        pass
