"""An output that cannot be written is named before anything is loaded, and nothing is left behind.

Rows: what is wrong with the place. Columns: the eight scripts, each as it is and with --dry-run.
What only a system that denies root something would do is injected where that system is asked.
"""

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from eight_scripts import WRITES
from running import files_under, refused, run

from slimtune.artifacts import writable
from slimtune.config import Config, Options
from slimtune.console import table

pytestmark = pytest.mark.faults


def a_file_above(world: Path, script: str) -> Path:
    (world / "taken").write_text("mine", encoding="utf-8")
    return world / "taken" / "deeper"


def a_broken_link_above(world: Path, script: str) -> Path:
    (world / "taken").symlink_to(world / "nowhere")
    return world / "taken" / "deeper"


def its_name_taken(world: Path, script: str) -> Path:
    """By a file where a folder is to be made, and by a folder where a file is."""
    output = world / "taken" / WRITES[script].makes
    output.parent.mkdir(exist_ok=True)
    if WRITES[script].is_folder:
        output.write_text("mine", encoding="utf-8")
    else:
        output.mkdir()
    return world / "taken"


def a_broken_link(world: Path, script: str) -> Path:
    output = world / "taken" / WRITES[script].makes
    if output != world / "taken":
        output.parent.mkdir()
    output.symlink_to(world / "nowhere")
    return world / "taken"


def too_long(world: Path, script: str) -> Path:
    return world / ("n" * 300) / "deeper"


def longer_with_what_is_around_it(world: Path, script: str) -> Path:
    """The name itself would do; `.NAME.holder.lock` would not."""
    return world / ("n" * 250)


PLACES: dict[str, tuple[Callable[[Path, str], Path], int]] = {
    "a file above": (a_file_above, 2),
    "a broken link above": (a_broken_link_above, 2),
    "its name taken": (its_name_taken, 2),
    "a broken link": (a_broken_link, 2),
    "a name too long": (too_long, 4),
}


def links_and_files(folder: Path) -> dict[str, object]:
    links = {str(path): os.readlink(path) for path in folder.rglob("*") if path.is_symlink()}
    return files_under(folder) | links


@pytest.mark.parametrize("dry", [False, True], ids=["", "dry"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("script", WRITES)
def test_a_place_where_nothing_can_be_written(script, place, dry, world) -> None:
    make, code = PLACES[place]
    words = WRITES[script].into(make(world, script))
    before = links_and_files(world)
    flags = ["--config", "config.yaml", *words, *(["--dry-run"] if dry else [])]
    refused(code, "", script, *flags)
    assert links_and_files(world) == before


REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "does not permit",
    errno.EROFS: "read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "quota",
    errno.EIO: "the disk failed",
    errno.EMFILE: "too many files",
    errno.ESTALE: "network drive",
}


@pytest.mark.parametrize("code", REFUSED, ids=errno.errorcode.get)
@pytest.mark.parametrize("script", WRITES)
def test_a_disk_that_takes_nothing(script, code, world, monkeypatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(code, os.strerror(code), str(dir / "tmp"))

    monkeypatch.setattr(writable, "TemporaryFile", refuse)
    before = links_and_files(world)
    words = WRITES[script].into(world / "new")
    said = "\n".join(refused(4, REFUSED[code], script, "--config", "config.yaml", *words))
    assert "tmp" in said
    assert links_and_files(world) == before


@pytest.mark.parametrize("script", WRITES)
def test_a_dry_run_asks_and_writes_nothing(script, world, monkeypatch) -> None:
    def written(**_: object) -> None:
        raise AssertionError("a dry run wrote")

    monkeypatch.setattr(writable, "TemporaryFile", written)
    monkeypatch.setattr(writable.os, "access", lambda *_, **__: False)
    words = WRITES[script].into(world / "new")
    refused(4, "permission denied", script, "--config", "config.yaml", *words, "--dry-run")


def test_a_name_that_leaves_no_room_for_its_lock(world) -> None:
    words = ("--config", "config.yaml", "--output-dir", longer_with_what_is_around_it(world, ""))
    refused(4, "longer than allowed", "model_pruning", *words)


def test_a_disk_that_is_full_in_truth(world, tmp_path) -> None:
    """1 MB of memory as a disk, filled: by the system itself, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        (disk / "filler").write_bytes(b"\0" * (1 << 20))
        for script in ("prepare_data", "create_sample_data", "model_pruning"):
            words = WRITES[script].into(disk / "new")
            said = refused(4, "the disk is full", script, "--config", "config.yaml", *words)
            assert "0 B free" in said[0] and "disk/new" in said[0]
        assert {path.name for path in disk.iterdir()} == {"filler"}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def config(**options: bool) -> Config:
    settings = Config()
    settings._options = Options(**options)
    return settings


def test_trying_leaves_nothing(tmp_path) -> None:
    for dry in (True, False):
        writable.require_writable(tmp_path / "a" / "b" / "c", config(dry_run=dry))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["/dev/full", "closed"])
def test_an_output_that_nobody_takes(target, tmp_path) -> None:
    """Words to a full disk, and to a program that has ended: `script | head -1`."""
    if sys.platform != "linux":
        pytest.skip("/dev/full is Linux's")
    script = importlib.import_module("create_sample_data").__file__
    words = [sys.executable, script, "--dry-run", "--output-dir", tmp_path / "a"]
    reader, writer = os.pipe()
    os.close(reader)
    if target == "/dev/full":
        os.close(writer)
        writer = os.open(target, os.O_WRONLY)
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 4 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_both_outputs_that_nobody_takes(tmp_path) -> None:
    """`script 2>&1 | head -1`: there is nowhere to say it, and the exit code still does."""
    script = importlib.import_module("create_sample_data").__file__
    for words in (["--dry-run", "--output-dir", tmp_path / "a"], ["--no-such-flag"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, script, *words], stdout=writer, stderr=writer)
        os.close(writer)
        assert done.returncode == (4 if "--dry-run" in words else 2)


def test_a_table_that_nobody_takes_is_no_end_of_its_own(monkeypatch) -> None:
    """rich ends the process with 1 and no word where what reads its tables has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with pytest.raises(BrokenPipeError):
            table(["", "rows"], [["train", "3"]])
            gone.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_a_working_directory_that_was_removed_is_named(tmp_path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows keeps a folder that somebody is in")
    script = importlib.import_module("create_sample_data").__file__
    (tmp_path / "gone").mkdir()
    words = f"rmdir '{tmp_path}/gone'; exec '{sys.executable}' '{script}' --output-dir '{tmp_path}'"
    shell = ["sh", "-c", words]
    done = subprocess.run(shell, cwd=tmp_path / "gone", capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "error: the working directory: it was removed" in done.stderr


def test_a_limit_of_file_size_while_it_writes(tmp_path) -> None:
    """`ulimit -f`: the write itself fails, with the file that was open and with the limit."""
    if sys.platform != "linux":
        pytest.skip("a shell with ulimit is needed")
    script = importlib.import_module("create_sample_data").__file__
    words = f"--output-dir '{tmp_path}/d' --models-dir '{tmp_path}/m'"
    command = f"ulimit -f 80; exec '{sys.executable}' '{script}' {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert "raw_data.json: no file may be that large here (the limit is 81.9 kB)" in done.stderr
    assert not list((tmp_path / "d").glob("[!.]*"))


def test_it_goes_on_when_the_place_is_free_again(world) -> None:
    """A run that found its place taken blocks none after it."""
    (world / "new" / "raw_data.json").mkdir(parents=True)
    words = ["--config", "config.yaml", "--rows", 300, "--models-dir", "m", "--output-dir", "new"]
    refused(2, "its place is taken", "create_sample_data", *words)
    (world / "new" / "raw_data.json").rmdir()
    ran = run("create_sample_data", *words)
    assert ran.code == 0, ran.err
