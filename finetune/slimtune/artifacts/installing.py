"""Files on their way into a shared folder: NAME.partial -> NAME.ready -> their own names.

With the rename to NAME.ready the run has happened; only its files still need their places, the
manifest last. What is killed in between is finished by the next run that writes the same output,
under its lock. Nobody else touches it: a NAME.ready may have come with somebody's data, so a reader
only looks, and the writer takes from it nothing but the files it would write itself, whole.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import as_sealed, refuse_link
from slimtune.artifacts.records import read_manifest
from slimtune.console import near
from slimtune.errors import SettingsError
from slimtune.machine.moving import move

_READY = ".ready"
_MANIFEST = "_run.json"


def named_beside(manifest: Path, ending: str) -> Path:
    """data/train_run.json -> data/train.partial, for the ending `.partial`."""
    return manifest.with_name(manifest.name.removesuffix(_MANIFEST) + ending)


def ready_of(manifest: Path) -> Path:
    return named_beside(manifest, _READY)


def waits(manifest: Path) -> bool:
    """Whether there is a NAME.ready, be it a run's of ours or not."""
    return os.path.lexists(ready_of(manifest))


def install(manifest: Path, outputs: Sequence[Path], run: Mapping[str, Any]) -> None:
    """Give the files of `run`, in NAME.ready, their places, the manifest last.

    `outputs` are all files that the stage may write. Those of an earlier run that are not written
    any more go, if they are as its record says. Raises SettingsError before the first move where a
    folder stands in the way.
    """
    require_free(manifest, outputs)
    ready, before = ready_of(manifest), read_manifest(manifest)
    for name in run["files"]:
        if (ready / name).exists():
            move(ready / name, manifest.with_name(name))
    for file in outputs:
        old = before["files"].get(file.name) if before else None
        if old and file.name not in run["files"] and _is_whole(file, old):
            file.unlink()
    move(ready / manifest.name, manifest)
    remove_empty(ready)


def finish(manifest: Path, outputs: Sequence[Path]) -> bool:
    """Install what a killed run of this stage left in NAME.ready; whether there was anything.

    Raises SettingsError for a NAME.ready that is none of this stage's.
    """
    if not waits(manifest):
        return False
    require_ready(manifest, outputs)
    ready = ready_of(manifest)
    run = read_manifest(ready / manifest.name)
    if run is None:  # it is empty: killed between the last move and this
        remove_empty(ready)
        return False
    install(manifest, outputs, run)
    return True


def remove_empty(folder: Path) -> None:
    """On Windows a program may stand in it; empty it stops nobody, and goes with the next run."""
    with suppress(OSError):
        folder.rmdir()


def require_ready(manifest: Path, outputs: Sequence[Path]) -> None:
    """SettingsError, with the cure, unless NAME.ready is what a killed run of this stage leaves."""
    ready = ready_of(manifest)
    why = _why_not(ready, manifest, [file.name for file in outputs])
    if why:
        raise SettingsError(
            f"{near(ready)}: not what a stopped run of this stage leaves",
            why,
            f"look into it, delete {near(ready)} or move it away, and run the command again",
        )


def _why_not(ready: Path, manifest: Path, names: Sequence[str]) -> str | None:
    if ready.is_symlink() or not ready.is_dir():
        return "it is a link or a file, not a folder"
    there = {path.name for path in ready.iterdir()}
    if not there:
        return None
    run = None if (ready / manifest.name).is_symlink() else read_manifest(ready / manifest.name)
    if run is None or not run["files"]:
        return f"{manifest.name} in it is missing, or no record of SlimTune's"
    strange = sorted((there | run["files"].keys()) - {*names, manifest.name})
    if strange:
        return f"{strange[0]} is no file of this stage"
    for name, sealed in run["files"].items():
        place = ready if name in there else manifest.parent
        if not _is_whole(place / name, sealed):
            return f"{name} is missing, or not as {manifest.name} in it says"
    return None


def require_free(manifest: Path, outputs: Sequence[Path]) -> None:
    """SettingsError where a folder or a link has the name of a file to be written."""
    for file in (manifest, *outputs):
        refuse_link(file)
        if file.is_dir():
            raise SettingsError(
                f"{near(file)}: its place is taken",
                "a folder stands where a file is to be written, and what is in it might be yours",
                f"move {near(file)} away, or choose another output",
            )


def interrupted(path: Path) -> tuple[Path, str] | None:
    """NAME.ready and stage of a run that was killed while its files, `path` among them, moved.

    From the first move on, files of two runs lie side by side; before it, and for a NAME.ready that
    is none of ours, what is in the folder counts.
    """
    for ready in sorted(path.parent.glob(f"*{_READY}")):
        run = read_manifest(ready / (ready.name.removesuffix(_READY) + _MANIFEST))
        if ready.is_symlink() or run is None or any("/" in name for name in run["files"]):
            continue
        if path.name in run["files"] and (not path.exists() or _has_begun(ready, run)):
            return ready, run["stage"]
    return None


def _has_begun(ready: Path, run: Mapping[str, Any]) -> bool:
    """Whether a file has left NAME.ready and is in its place."""
    gone = {name: one for name, one in run["files"].items() if not (ready / name).exists()}
    return any(_is_whole(ready.with_name(name), sealed) for name, sealed in gone.items())


def _is_whole(file: Path, sealed: Mapping[str, Any]) -> bool:
    """Whether a file itself, no link to another, is as its record says."""
    try:
        return not file.is_symlink() and as_sealed(file, sealed)
    except OSError:
        return False
