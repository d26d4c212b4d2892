"""One writer an output: who holds it, free after kill -9, nobody else's file touched."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimtune.errors import LockedError, SettingsError
from slimtune.machine import locks
from slimtune.machine.locks import only_writer

FINETUNE = Path(__file__).resolve().parents[3] / "finetune"
HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from slimtune.machine import locks
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


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux only")
def test_a_worker_that_outlives_its_killed_parent_holds_nothing(tmp_path) -> None:
    """flock belongs to whoever has the file open, and a fork would have it too."""
    with only_writer(tmp_path / "out", "noon", "a long run"):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert not pool.apply(open_locks)
        with pytest.raises(LockedError):
            taken(tmp_path / "out").__enter__()


def open_locks() -> list[str]:
    """The locks that this process has open; Linux only."""
    files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return [file for file in files if file.endswith(".lock")]


def place(name: str, kind: str, folder: Path) -> None:
    """Somebody else's thing under the name of a lock or of its holder's words."""
    target = folder / "thesis.txt"
    target.write_text("process of years")
    if kind == "link":
        (folder / name).symlink_to(target)
    elif kind == "broken link":
        (folder / name).symlink_to(folder / "nowhere")
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).write_text("years of work")


def everything(folder: Path) -> dict[str, object]:
    """All names under `folder` with what they hold or where they lead."""
    found: dict[str, object] = {}
    for path in folder.iterdir():
        if path.is_symlink():
            found[path.name] = os.readlink(path)
        else:
            found[path.name] = path.read_bytes() if path.is_file() else None
    return found


KINDS = ["link", "broken link", "folder", "file"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_lock_is_refused_and_stays(kind, tmp_path) -> None:
    place(".out.lock", kind, tmp_path)
    before = everything(tmp_path)
    with pytest.raises(SettingsError, match="no lock of SlimTune's"), taken(tmp_path / "out"):
        pass
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_words_of_a_holder_stay_and_are_not_said(kind, tmp_path) -> None:
    place(".out.holder.lock", kind, tmp_path)
    before = everything(tmp_path)
    with (
        taken(tmp_path / "out"),
        pytest.raises(LockedError, match="an unknown process"),
        taken(tmp_path / "out"),
    ):
        pass
    left = everything(tmp_path)
    left.pop(".out.lock", None)
    assert left == before


@pytest.mark.parametrize("words", ["", "process 7 since noon: train_lora.py", "7\nhost\n1\n"])
def test_the_lock_of_an_earlier_run_is_taken(words, tmp_path) -> None:
    (tmp_path / ".out.lock").write_text(words)
    with taken(tmp_path / "out"):
        pass


def test_a_link_that_comes_at_the_last_moment_is_not_followed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "_refuse_foreign", lambda file: None)
    place(".out.lock", "link", tmp_path)
    before = everything(tmp_path)
    with pytest.raises(OSError, match="symbolic"), taken(tmp_path / "out"):
        pass
    assert everything(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_no_bug_of_ours(tmp_path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(SettingsError, match="none can be made"), taken(tmp_path / "data/a/out"):
        pass
