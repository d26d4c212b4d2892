"""Writing a stage's output: under a lock, in a partial folder, renamed when it is whole."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slimtune.artifacts.files import as_sealed, clear, flush, write_json
from slimtune.artifacts.records import RUN, command, now, read_manifest, record
from slimtune.config import Config
from slimtune.console import SettingsError, first_process, near
from slimtune.machine.locks import only_writer

READY = ".ready"


@dataclass
class Stage:
    """A stage being written: put files into `folder`, numbers into `metrics`."""

    name: str
    folder: Path
    config: Config
    inputs: Sequence[Path | str]
    started: float = field(default_factory=time.time)
    metrics: dict[str, Any] = field(default_factory=dict)

    def record(self, manifest: str = RUN) -> dict[str, Any]:
        """The stage so far, as its `manifest` will say it."""
        told = (self.metrics, self.config, self.inputs, self.started)
        return record(self.name, self.folder, manifest, *told)


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
        if partial.is_symlink() or not (keep_partial and config.options.resume):
            clear(partial)
        partial.mkdir(parents=True, exist_ok=True)
        stage = Stage(name, partial, config, inputs)
        try:
            yield stage
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        write_json(partial / RUN, stage.record())
        _swap(partial, final)


@contextmanager
def stage_files(
    name: str, manifest: Path, config: Config, *, inputs: Sequence[Path | str] = ()
) -> Iterator[Stage]:
    """Files that go into a shared folder, all together; `manifest` is their NAME_run.json.

    They are complete in NAME.partial, then NAME.ready is its name and the run has happened: what
    is killed while the files move out of it is finished by the next run of the same output.
    """
    with _lock(manifest):
        _install(manifest)
        refuse_finished_files(manifest, config)
        partial = _beside(manifest, ".partial")
        clear(partial)
        partial.mkdir(parents=True)
        stage = Stage(name, partial, config, inputs)
        try:
            yield stage
            # A full disk must show before anything gets its final name.
            write_json(partial / manifest.name, stage.record(manifest.name))
            partial.rename(_beside(manifest, READY))
            _install(manifest)
        finally:
            clear(partial)


def _install(manifest: Path) -> None:
    """Move NAME.ready's files into the folder, the manifest last; remove what they replace.

    Only for the writer of that output, under its lock. What the folder may hold is not believed:
    names are plain, bytes are those that its manifest tells of, and of the old output only what is
    still as its own manifest says is removed. Raises SettingsError, naming the cure, where a file
    is not whole or its place is taken by a folder.
    """
    ready = _beside(manifest, READY)
    if not ready.exists() and not ready.is_symlink():
        return
    run, before = read_manifest(ready / manifest.name), read_manifest(manifest)
    if ready.is_symlink() or run is None:
        raise _stuck(ready, ready, "what is in it was not finished by a run of this script")
    for file, sealed in run["files"].items():
        _require_movable(ready, manifest.parent, file, sealed)
    for file in run["files"]:
        if (ready / file).is_file():
            os.replace(ready / file, manifest.parent / file)
    _remove_old(manifest.parent, before["files"] if before else {}, run["files"])
    os.replace(ready / manifest.name, manifest)
    clear(ready)


def _require_movable(ready: Path, folder: Path, name: str, sealed: Mapping[str, Any]) -> None:
    moved = not (ready / name).exists()
    if "/" in name or (ready / name).is_symlink():
        raise _stuck(ready, ready / name, "no run of this script writes such a file")
    if (folder / name).is_dir():
        raise _stuck(ready, folder / name, "a folder stands where the file belongs")
    if not as_sealed(folder / name if moved else ready / name, sealed):
        raise _stuck(ready, ready / name, "it is not the file that the manifest tells of")


def _remove_old(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Remove the files of `old` that `new` has not, where they are still as they were written."""
    for name in old.keys() - new.keys():
        file = folder / name
        if not file.is_symlink() and as_sealed(file, old[name]):
            file.unlink()


def _stuck(ready: Path, place: Path, why: str) -> SettingsError:
    return SettingsError(
        f"{near(place)}: what a stopped run left cannot be put in its place",
        why,
        f"move {near(place)} away if it is yours, else delete {near(ready)}, and run this again",
    )


def _beside(manifest: Path, ending: str) -> Path:
    return manifest.with_name(manifest.name.removesuffix("_run.json") + ending)


def refuse_finished(final: Path, config: Config) -> None:
    """Raise SettingsError when `final` is finished and may not be replaced: before long work."""
    if final.is_file():
        raise _taken(final, "a file stands where a folder is to be written")
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


def refuse_finished_files(manifest: Path, config: Config, outputs: Sequence[Path] = ()) -> None:
    """The same for files in a shared folder, whose record is `manifest`.

    `outputs` are those known beforehand: no folder may stand under their names.
    """
    for file in (manifest, *outputs):
        if file.is_dir():
            raise _taken(file, "a folder stands where a file is to be written")
    run = read_manifest(manifest)
    # What a stopped run has finished is put in its place first, by `stage_files`, then refused.
    waits = _beside(manifest, READY).exists()
    if run and not waits and not config.options.overwrite:
        raise _finished(manifest.parent / next(iter(run["files"]), manifest.name), run)


def _taken(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"{near(path)}: its place is taken", why, "move it away, or choose another output"
    )


def _finished(path: Path, run: dict[str, Any]) -> SettingsError:
    return SettingsError(
        f"{near(path)}: exists already ({run['stage']}, {run['started']})",
        "finished output is never overwritten silently",
        "go on with the next script, or add --overwrite to make it again",
    )


def _lock(output: Path) -> AbstractContextManager[None]:
    """The lock beside an output, with the words by which another run learns who holds it."""
    return only_writer(output, since=now(), command=" ".join(command()))


def _swap(partial: Path, final: Path) -> None:
    """The finished partial folder under its own name; the old one goes only afterwards."""
    old = final.with_name(final.name + ".old")
    clear(old)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    flush(final.parent)
    clear(old)
