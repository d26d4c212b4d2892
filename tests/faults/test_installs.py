"""Item by item of a run that could not put its files in place: what it blocks, and how it ends."""

import errno
import json
import os
from pathlib import Path

import pytest
from hostile import write_ready
from running import files_under, refused, run, succeeds

from slimtune.artifacts import installing, require
from slimtune.data import writing

pytestmark = pytest.mark.faults

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(60)]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words that prepare a few rows into `rows`, without a tokenizer."""
    (tmp_path / "raw.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("model: {base_model: a-user/a-model}\n", "utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return "--config", "config.yaml", "--input", "raw.json", "--output-dir", "rows"


@pytest.mark.parametrize("file", [*writing.output_files("train"), "train_run.json"])
def test_a_folder_in_the_place_of_any_file_is_seen_before_the_work(prepared, file, monkeypatch):
    (Path("rows") / file).mkdir(parents=True)
    monkeypatch.setattr("slimtune.data.preparation.prepare", lambda *_: 1 / 0)
    for flags in ((), ("--overwrite",), ("--dry-run",)):
        said = refused(2, f"rows/{file}: its place is taken", "prepare_data", *prepared, *flags)
        assert f"move rows/{file} away" in said[-1]
    assert not files_under(Path("rows"))


def test_a_stuck_install_stops_its_writer_alone(prepared) -> None:
    """It came with the folder, or its run ended on a disk that is no more."""
    succeeds("prepare_data", *prepared)
    write_ready(Path("rows"), "train", {"strange.jsonl": b"x"})
    said = refused(2, "train.ready: not what a stopped run", "prepare_data", *prepared)
    assert "delete rows/train.ready" in said[-1]
    # Others write into that folder, and read from it.
    succeeds("prepare_data", *prepared, "--output-name", "other")
    require(Path("rows/train_train.jsonl").absolute())


def test_a_move_that_is_refused_is_made_by_the_same_command(prepared, monkeypatch) -> None:
    moves: list[Path] = []

    def refuse_the_second(source: Path, target: Path, *more: object) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError(errno.EACCES, "no", str(source), None, str(target))
        os.replace(source, target)

    with monkeypatch.context() as refusing:
        refusing.setattr(installing, "move", refuse_the_second)
        refused(4, "permission denied", "prepare_data", *prepared)
    assert Path("rows/train.ready").is_dir()
    ran = run("prepare_data", *prepared)
    assert "is finished now" in ran.err and ran.code == 2 and "exists already" in ran.err
    assert Path("rows/train_run.json").is_file() and not Path("rows/train.ready").exists()


WHILE_IT_WORKS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "quota",
    errno.EIO: "the disk failed",
    errno.EROFS: "read-only",
    errno.ENOMEM: "out of memory",
}


@pytest.mark.parametrize("code", WHILE_IT_WORKS, ids=errno.errorcode.get)
def test_a_disk_that_fails_while_rows_are_written(prepared, code, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))  # a failed write names no file

    monkeypatch.setattr("slimtune.artifacts.files.flush", fail)
    said = refused(4, WHILE_IT_WORKS[code], "prepare_data", *prepared)
    assert code == errno.ENOMEM or "rows" in said[0], said
    assert not files_under(Path("rows")) and not list(Path("rows").glob("[!.]*"))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_rows_that_cannot_be_read(prepared, code, monkeypatch) -> None:
    opened = Path.open

    def fail(self: Path, *arguments: object, **named: object) -> object:
        if self.name == "raw.json":
            raise OSError(code, os.strerror(code), str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", fail)
    refused(3, "raw.json: cannot be read", "prepare_data", *prepared)


def test_too_many_files_open_while_rows_are_read(prepared, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "raw.json")

    monkeypatch.setattr("slimtune.data.encodings.is_compressed", fail)
    said = refused(4, "too many files are open", "prepare_data", *prepared)
    assert "ulimit -n" in said[-1]
