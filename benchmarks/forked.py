"""The eight scripts in forks of one warm process, each on a copy of one tiny project.

    home = make_home(folder)                 # home/given: base, rows, adapter; made once
    cell = Cell(home, "train_lora")          # a copy, and the words of a short run in it
    ended = cell.run()                       # exit code, what it said, CPU seconds

A start of Python with torch costs seven CPU seconds and a fork none, so that hundreds of runs are a
matter of minutes. A fork may be killed, starved and run as nobody; the others see nothing of it.
"""

import hashlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "finetune"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conftest import write_project
from llama_starts import Server
from running import compared_in_forks, settle_torch, small_pictures, succeeds

from slimtune.inference import generation, llama_child
from slimtune.script import run as run_script

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # torch is not imported yet
SECONDS = 240  # after which a run counts as hanging: the machine may be busy
_SHORT = ("--epochs", "1")
_ROWS = ("--train-data", "rows/train_train.jsonl", "--val-data", "rows/train_validation.jsonl")
_TEACHING = ("--teacher-model", "teacher", "--text-data", "null", "--cache-dir", "new/cache")
# What each is told beside --config; all of it lies in the cell's folder, and `new` is the output.
WORDS: dict[str, tuple[str, ...]] = {
    "create_sample_data": ("--rows", "60", "--text-lines", "10", "--models-dir", "new/sample")
    + ("--output-dir", "new"),
    "prepare_data": ("--input", "raw.json", "--base-model", "base", "--output-dir", "new"),
    "train_lora": ("--base-model", "base", *_ROWS, *_SHORT, "--output-dir", "new"),
    "model_pruning": ("--model-path", "base", *_ROWS[:2], "--output-dir", "new/pruned"),
    "knowledge_distillation": ("--student-model", "base", *_TEACHING, *_ROWS, *_SHORT)
    + ("--output-dir", "new/distilled"),
    "train_pruned_distilled": ("--base-model", "base", *_TEACHING, *_ROWS, *_SHORT)
    + ("--distillation-epochs", "1", "--stages", "prune,cache,distil,lora,merge")
    + ("--output-dir", "new"),
    "evaluate_model": ("--base-model", "base", "--lora-model", "adapter", "--max-rows", "4")
    + ("--test-data", "rows/train_test.jsonl", "--output", "new/results.csv"),
    "convert_to_gguf": ("--model-path", "base", "--test-data", "rows/train_test.jsonl")
    + ("--output-dir", "new"),
}
# What each writes first, below `new`: no run that fails may leave it.
FINAL = {
    "create_sample_data": "raw_data.json",
    "prepare_data": "train_train.jsonl",
    "train_lora": "lora_adapter",
    "model_pruning": "pruned",
    "knowledge_distillation": "distilled",
    "train_pruned_distilled": "pruned",
    "evaluate_model": "results.csv",
    "convert_to_gguf": "tiny-F16.gguf",
}
ALL = tuple(WORDS)
LEARNING = ("train_lora", "knowledge_distillation", "train_pruned_distilled")
_llama = Server()


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, less than 0 for a signal, None for one that hung."""

    code: int | None
    out: str
    err: str
    cpu: float


def make_home(folder: Path) -> Path:
    """`folder` with the project in `given`, without records: what is changed there is only changed.

    `recorded` is the same with them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made"
    write_project(made)
    settings = ("--config", made / "config.yaml")
    succeeds("prepare_data", *settings)
    succeeds("train_lora", *settings)
    recorded = folder / "recorded"
    recorded.mkdir()
    for name in ("config.yaml", "raw.json", "base", "rows"):
        _copy(made / name, recorded / name)
    _copy(made / "base", recorded / "teacher")
    _copy(made / "tuned/lora_adapter", recorded / "adapter")
    _copy(recorded, folder / "given")
    for record in folder.glob("given/*/*run.json"):
        record.unlink()
    os.chmod(folder, 0o755)
    _llama.start("slimtune.inference.llama_cpp", *_nobody()).wait()  # the forks share what forks
    for script in WORDS:
        _import_what_it_imports(folder, script)
    return folder


def _import_what_it_imports(home: Path, script: str) -> None:
    """By this process, so that no fork does: it may be one without the right to read Python."""
    cell = Cell(home, script)
    names = cell.folder.parent / "names"
    cell.at_end = lambda: names.write_text("\n".join(name for name, m in sys.modules.items() if m))
    ended = cell.run()
    assert ended.code == 0, ended.err
    for name in names.read_text("utf-8").splitlines():
        with suppress(Exception):  # names that only another import makes
            importlib.import_module(name)
    cell.close()


def _nobody() -> tuple[object, object]:
    """A pipe that nobody writes to, and a file: for a child that ends at once."""
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    ours.close()
    return theirs, tempfile.TemporaryFile()  # noqa: SIM115  closed with the process


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))
    else:
        shutil.copy(source, target)


@dataclass
class Cell:
    """One run of one script in a copy of the project: change `folder`, `words`, `before`, then run.

    `before` is called in the fork; `after` is called when it has ended, and says what is wrong.
    """

    home: Path
    script: str
    given: str = "given"
    folder: Path = field(init=False)
    words: list[str] = field(init=False)
    before: list[Callable[[], None]] = field(default_factory=list)
    after: list[Callable[[Ended], str]] = field(default_factory=list)
    during: Callable[[int], None] = lambda child: None
    at_end: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.home)) / "world"
        os.chmod(self.folder.parent, 0o755)
        shutil.copytree(self.home / self.given, self.folder)
        self.words = ["--config", "config.yaml", *WORDS[self.script]]

    @property
    def final(self) -> Path:
        return self.folder / "new" / FINAL[self.script]

    def run(self) -> Ended:
        """Run it to its end, in at most `SECONDS`."""
        said = [self.folder.parent / name for name in ("out", "err")]
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._be(said)
        try:
            self.during(child)
            status, cpu = _wait(child)
        finally:
            _end(child)
        out, err = (file.read_text("utf-8", "replace") if file.exists() else "" for file in said)
        return Ended(status, out, err, cpu)

    def _be(self, said: list[Path]) -> None:
        """The fork: never returns."""
        code = 99
        try:
            os.setsid()
            for number, file in enumerate(said, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(self.folder)
            settle_torch()
            module = importlib.import_module(self.script)
            sys.argv = [module.__file__, *self.words]
            with (
                small_pictures(),
                compared_in_forks(),
                patch.object(generation, "SPEED_RUNS", 1),
                patch.object(llama_child, "_start", _llama.start),
            ):
                for prepare in self.before:
                    prepare()
                run_script(module.main, module.__doc__)
        except SystemExit as end:
            code = end.code
            self.at_end()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def close(self) -> None:
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def _wait(child: int) -> tuple[int | None, float]:
    """(exit code, CPU seconds with its children); None where it did not end."""
    begun = time.monotonic()
    while time.monotonic() - begun < SECONDS:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    usage = os.wait4(child, 0)[2]
    return None, usage.ru_utime + usage.ru_stime


def _end(child: int) -> None:
    """What it has started goes with it."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def contents(folder: Path, leave: tuple[str, ...] = ()) -> dict[str, str]:
    """What lies in a folder, locks aside: files by their sums, links by where they lead."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in leave or name.endswith(".lock"):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
