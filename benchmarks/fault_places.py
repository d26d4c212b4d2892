"""What happens to an output, to the machine and to a run: makers of rows for fault_matrix.py."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import psutil
from forked import FINAL, Cell, Ended

Make = Callable[[Cell], None]
NOBODY = 65534


def file_above(cell: Cell) -> None:
    (cell.folder / "new").write_text("mine", "utf-8")


def name_taken(cell: Cell) -> None:
    cell.final.parent.mkdir(parents=True, exist_ok=True)
    if cell.final.suffix:
        cell.final.mkdir()
    else:
        cell.final.write_text("mine", "utf-8")


def broken_link(cell: Cell) -> None:
    cell.final.parent.mkdir(parents=True, exist_ok=True)
    cell.final.symlink_to(cell.folder / "nowhere")


def linked_folder(cell: Cell) -> None:
    """It stays a link, and what it leads to is written."""
    elsewhere = cell.folder.parent / "elsewhere"
    elsewhere.mkdir()
    link = cell.folder / "new"
    link.symlink_to(elsewhere)
    cell.after.append(lambda _: "" if link.is_symlink() else "the link is none any more")


def foreign_files(cell: Cell) -> None:
    """Something of the user's where the output goes, with a record of nobody's."""
    target = cell.final
    if target.suffix:
        stem = "train" if cell.script == "prepare_data" else target.stem
        target = target.with_name(f"{stem}_run.json")
        target.parent.mkdir(parents=True)
        target.write_text("{}", "utf-8")
    else:
        target.mkdir(parents=True)
        (target / "mine.txt").write_text("mine", "utf-8")


def long_name(cell: Cell) -> None:
    cell.words = [word.replace("new", "n" * 300) for word in cell.words]


def as_nobody(cell: Cell) -> None:
    """The system denies root nothing."""
    if os.geteuid() == 0:
        for path in (cell.folder, *cell.folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        cell.before.append(lambda: (os.setgroups([]), os.setgid(NOBODY), os.setuid(NOBODY)))


def no_right_to_write(cell: Cell) -> None:
    (cell.folder / "new").mkdir()
    as_nobody(cell)
    os.chmod(cell.folder / "new", 0o555)


def disk(cell: Cell, options: str, filled: int = 0) -> None:
    """A file system of its own under the output, gone when the run has ended."""
    place = cell.folder / "new"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    (place / "filler").write_bytes(b"\0" * filled)

    def unmount(_: Ended) -> str:
        subprocess.run(["umount", "-l", place], check=True)
        return ""

    cell.after.append(unmount)


def read_only(cell: Cell) -> None:
    disk(cell, "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", cell.folder / "new"], check=True)


def full_disk(cell: Cell) -> None:
    disk(cell, "size=1m", filled=1 << 20)


def disk_that_fills(cell: Cell) -> None:
    """Room for what the output is tried with, and then for 8 kB."""
    disk(cell, "size=1m", filled=(1 << 20) - (72 << 10))


def limit(kind: int, value: Callable[[], int]) -> Make:
    def make(cell: Cell) -> None:
        def set_it() -> None:
            process = psutil.Process()
            process.rlimit(kind, (value(), process.rlimit(kind)[1]))
            if kind == psutil.RLIMIT_FSIZE:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself has it

        cell.before.append(set_it)

    return make


def a_little_memory() -> int:
    return psutil.Process().memory_info().vms + (16 << 20)


def a_few_files() -> int:
    return psutil.Process().num_fds() + 2


def few_threads(cell: Cell) -> None:
    as_nobody(cell)
    cell.before.append(lambda: psutil.Process().rlimit(psutil.RLIMIT_NPROC, (1, 1)))


def no_temporary_folder(cell: Cell) -> None:
    cell.before.append(lambda: setattr(tempfile, "tempdir", str(cell.folder / "nowhere")))


def finished(cell: Cell) -> None:
    """By this very run before."""
    first = Cell(cell.home, cell.script)
    ended = first.run()
    assert ended.code == 0, ended.err
    shutil.move(first.folder / "new", cell.folder / "new")
    first.close()


def locked(cell: Cell) -> None:
    from slimtune.machine.locks import only_writer

    output = {
        "create_sample_data": "raw_data_run.json",
        "prepare_data": "train_run.json",
        "train_pruned_distilled": "pruned",
        "evaluate_model": "results_run.json",
        "convert_to_gguf": "tiny-F16_run.json",
    }.get(cell.script, FINAL[cell.script])
    held = only_writer(cell.folder / "new" / output, since="now", command="another")
    cell.folder.joinpath("new").mkdir()
    held.__enter__()
    cell.after.append(lambda _: held.__exit__(None, None, None) or "")


def output_is_input(cell: Cell) -> None:
    read = {"prepare_data": "raw.json", "evaluate_model": "rows/train_test.jsonl"}
    target = read.get(cell.script, "base")
    if cell.script == "prepare_data":  # its outputs have names of their own
        shutil.copy(cell.folder / "raw.json", cell.folder / "rows/train_train.jsonl")
        cell.words += ["--input", "rows/train_train.jsonl", "--output-dir", "rows"]
    elif cell.script == "evaluate_model":
        cell.words += ["--output", target]
    else:
        cell.words += ["--output-dir", target]
    cell.words.append("--overwrite")


def reader_gone(cell: Cell) -> None:
    """`script | head -1`."""

    def close() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  the old: a file

    cell.before.append(close)


def folder_gone(cell: Cell) -> None:
    """The working directory was removed; all paths are told from the root."""
    names = ("base", "teacher", "rows/", "adapter", "raw.json", "new", "config.yaml")
    cell.words = [f"{cell.folder}/{w}" if w.startswith(names) else w for w in cell.words]

    def remove() -> None:
        gone = cell.folder.parent / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    cell.before.append(remove)


def sent(number: int, *, again: bool = False) -> Make:
    """A signal when the first bytes are written; `again`: the same command then goes through."""

    def make(cell: Cell) -> None:
        def during(child: int) -> None:
            until = time.monotonic() + 60
            while time.monotonic() < until and not list(cell.folder.glob("new/**/*partial*")):
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
                time.sleep(0.002)
            os.kill(child, number)

        def goes_on(_: Ended) -> str:
            """With the same command, or with what its error says to add."""
            cell.during, told = lambda child: None, cell.words
            for more in ([], ["--resume"], ["--overwrite"]):
                cell.words = [*told, *more]
                second = cell.run()
                if second.code == 0:
                    return ""
                if second.code != 2:
                    break
            return f"the second time: exit {second.code}: {second.err[-300:]}"

        cell.during = during
        if again:
            cell.after.append(goes_on)

    return make
