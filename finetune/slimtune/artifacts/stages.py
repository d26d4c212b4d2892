"""Writing a stage's output: under a lock, in a partial folder, renamed when it is whole."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slimtune.artifacts.records import RUN, command, now, read_manifest, record, write_json
from slimtune.config import Config
from slimtune.console import LockedError, SettingsError, first_process, near

_READY = ".ready"


@dataclass
class Stage:
    """A stage being written: put files into `folder`, numbers into `metrics`."""

    name: str
    folder: Path
    config: Config
    inputs: Sequence[Path | str]
    started: float = field(default_factory=time.time)
    metrics: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The stage so far, as its run.json will say it."""
        return record(self.name, self.folder, self.metrics, self.config, self.inputs, self.started)


@contextmanager
def stage_folder(
    name: str,
    final: Path,
    config: Config,
    *,
    inputs: Sequence[Path | str] = (),
    keep_partial: bool = False,
) -> Iterator[Stage]:
    """A folder written whole or not at all; `keep_partial` leaves a stopped run to --resume.

    Of several processes the first one owns it; what the others write is thrown away.
    Raises LockedError when another run writes it, SettingsError when it is finished already.
    """
    if not first_process():
        with TemporaryDirectory() as scratch:
            yield Stage(name, Path(scratch), config, inputs)
        return
    with _lock(final):
        refuse_finished(final, config)
        partial = final.with_name(final.name + ".partial")
        if partial.exists() and not (keep_partial and config.options.resume):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        stage = Stage(name, partial, config, inputs)
        try:
            yield stage
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        write_json(partial / RUN, stage.record())
        _sync(partial)
        _swap(partial, final)


@contextmanager
def stage_files(
    name: str, manifest: Path, config: Config, *, inputs: Sequence[Path | str] = ()
) -> Iterator[Stage]:
    """Files that go into a shared folder, all together; `manifest` is their NAME_run.json.

    They are complete in NAME.partial, then NAME.ready is its name and the run has happened: what
    is killed while the files move out of it is finished by whoever comes next.
    """
    with _lock(manifest):
        _install(manifest)
        refuse_finished_files(manifest, config)
        partial = _beside(manifest, ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        stage = Stage(name, partial, config, inputs)
        try:
            yield stage
            # A full disk must show before anything gets its final name.
            write_json(partial / manifest.name, stage.record())
            _sync(partial)
            partial.rename(_beside(manifest, _READY))
            _install(manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def finish_files(folder: Path) -> None:
    """Give the files of runs that were killed while installing them their place in `folder`."""
    for ready in folder.glob(f"*{_READY}"):
        manifest = ready.with_name(ready.name.removesuffix(_READY) + "_run.json")
        with suppress(LockedError), _lock(manifest):  # locked: its run is alive and at it
            _install(manifest)


def _install(manifest: Path) -> None:
    """Move NAME.ready's files into the folder, the manifest last; remove what they replace."""
    ready = _beside(manifest, _READY)
    run, before = read_manifest(ready / manifest.name), read_manifest(manifest)
    if run:
        for file in filter(lambda name: (ready / name).exists(), run["files"]):
            os.replace(ready / file, manifest.parent / file)
        for file in set(before["files"] if before else ()) - set(run["files"]):
            (manifest.parent / file).unlink(missing_ok=True)
        os.replace(ready / manifest.name, manifest)
    shutil.rmtree(ready, ignore_errors=True)


def _beside(manifest: Path, ending: str) -> Path:
    return manifest.with_name(manifest.name.removesuffix("_run.json") + ending)


def refuse_finished(final: Path, config: Config) -> None:
    """Raise SettingsError when `final` is finished and may not be replaced: before long work."""
    if config.options.overwrite or not final.exists():
        return
    run = read_manifest(final / RUN)
    if run:
        raise _finished(final, run)
    if any(final.iterdir()):
        raise SettingsError(
            f"{near(final)}: holds files that no stage of SlimTune wrote",
            "it has no run.json, so overwriting it might destroy something of yours",
            "choose another --output-dir, or add --overwrite",
        )


def refuse_finished_files(manifest: Path, config: Config) -> None:
    """The same for files in a shared folder, whose record is `manifest`."""
    run = read_manifest(manifest)
    if run and not config.options.overwrite:
        raise _finished(manifest.parent / next(iter(run["files"]), manifest.name), run)


def _finished(path: Path, run: dict[str, Any]) -> SettingsError:
    return SettingsError(
        f"{near(path)}: exists already ({run['stage']}, {run['started']})",
        "finished output is never overwritten silently",
        "go on with the next script, or add --overwrite to make it again",
    )


@contextmanager
def _lock(final: Path) -> Iterator[None]:
    """An exclusive lock beside the output; the system releases it even after kill -9."""
    final.parent.mkdir(parents=True, exist_ok=True)
    file = final.with_name(f".{final.name}.lock")
    with file.open("a+", encoding="utf-8") as handle:
        if not _try_lock(handle):
            handle.seek(0)
            raise LockedError(
                f"{near(final)}: another run is writing it",
                f"held by {handle.read().strip() or 'an unknown process'}",
                "wait for it to end, or choose another output",
            )
        handle.truncate(0)
        handle.write(f"process {os.getpid()} since {now()}: {' '.join(command())}")
        handle.flush()
        yield


def _try_lock(handle: Any) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _swap(partial: Path, final: Path) -> None:
    """The finished partial folder under its own name; the old one goes only afterwards."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
