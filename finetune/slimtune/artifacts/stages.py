"""Writing a stage's output: under a lock, in a partial folder, renamed when it is whole."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from slimtune.artifacts.files import clear, flush, is_plain, write_json
from slimtune.artifacts.installing import (
    finish,
    install,
    named_beside,
    ready_of,
    remove_empty,
    require_free,
    require_ready,
    waits,
)
from slimtune.artifacts.records import RUN, command, now, read_manifest, record
from slimtune.artifacts.writable import require_writable
from slimtune.config import Config
from slimtune.console import first_process, near, note
from slimtune.errors import SettingsError, naming
from slimtune.machine.locks import only_writer
from slimtune.machine.moving import move


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
) -> Iterator[Stage]:
    """A folder written whole or not at all.

    Of several processes the first one owns it; what the others write is thrown away. A link to a
    folder stays one: what it leads to is written, on the disk where that is.
    Raises LockedError when another run writes it, SettingsError when it is finished already or one
    of `inputs`.
    """
    refuse_inputs([final], inputs)
    if not first_process():
        with TemporaryDirectory() as scratch:
            yield Stage(name, Path(scratch), config, inputs)
        return
    refuse_finished(final, config)
    final = _led_to(final)
    with naming(final), _lock(final):
        refuse_finished(final, config)
        partial = final.with_name(final.name + ".partial")
        clear(partial)
        partial.mkdir(parents=True, exist_ok=True)
        stage = Stage(name, partial, config, inputs)
        try:
            yield stage
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        write_json(partial / RUN, stage.record())
        _swap(partial, final)


@contextmanager
def stage_files(
    name: str,
    manifest: Path,
    config: Config,
    *,
    outputs: Sequence[Path],
    inputs: Sequence[Path | str] = (),
) -> Iterator[Stage]:
    """Files that go into a shared folder, all together; `manifest` is their NAME_run.json.

    `outputs` are those that the stage may write. They are complete in NAME.partial, then NAME.ready
    is its name and the run has happened: what is killed while the files move out of it is finished
    by the next run of the same output. Raises what `refuse_finished_files` and `refuse_inputs` do.
    """
    refuse_inputs([*outputs, manifest], inputs)
    with naming(manifest.parent), _lock(manifest):
        _finish(manifest, outputs)
        refuse_finished_files(manifest, config, outputs)
        partial = named_beside(manifest, ".partial")
        clear(partial)
        partial.mkdir(parents=True, exist_ok=True)
        stage = Stage(name, partial, config, inputs)
        try:
            yield stage
            run = stage.record(manifest.name)
            unannounced = run["files"].keys() - {file.name for file in outputs}
            if unannounced:
                raise ValueError(f"{name} wrote {unannounced}, which it had not announced")
            # A full disk must show before anything gets its final name.
            write_json(partial / manifest.name, run)
            move(partial, ready_of(manifest))
            install(manifest, outputs, run)
        finally:
            clear(partial)


def finish_files(manifest: Path, config: Config, outputs: Sequence[Path]) -> None:
    """Give the files of a run that was killed while it installed them their places.

    Only for the stage that writes them: under its lock, and never in a dry run, which is told
    whether it could be done. Raises SettingsError where it cannot.
    """
    if not waits(manifest):
        return
    if config.options.dry_run:
        require_ready(manifest, outputs)
        return
    with _lock(manifest):
        _finish(manifest, outputs)


def _finish(manifest: Path, outputs: Sequence[Path]) -> None:
    if finish(manifest, outputs):
        note(f"{near(manifest)}: its run had been stopped at its very end and is finished now")


def refuse_inputs(outputs: Sequence[Path], inputs: Sequence[Path | str | None]) -> None:
    """Raise SettingsError where an output is an input, lies in one or holds one, however named.

    `--overwrite` would clear it, and the run lose what it reads.
    """
    # A name that is no path of anything may be a Hub id.
    files = [one for one in inputs if one and (isinstance(one, Path) or os.path.lexists(one))]
    read = {one: Path(one).resolve() for one in files}
    for output in outputs:
        written = output.resolve()
        for named, real in read.items():
            if written.is_relative_to(real) or real.is_relative_to(written):
                raise SettingsError(
                    f"{near(output)}: the run reads {near(named)} and would write over it",
                    "an output must not be an input, lie in one or hold one, under any name",
                    "choose another output, or give a copy as input",
                )


def refuse_finished(final: Path, config: Config) -> None:
    """Raise SettingsError when `final` is finished and may not be replaced: before long work.

    Also what `require_writable` raises.
    """
    if os.path.lexists(final) and not final.is_dir():
        raise _taken(final, "a file or a broken link stands where a folder is to be written")
    require_writable(_led_to(final), config)
    if not final.exists():
        return
    run = read_manifest(final / RUN)
    if final.is_symlink() and run is None and any(final.iterdir()):
        raise _taken(final, "the folder that it leads to holds files which no stage wrote")
    if config.options.overwrite:
        return
    if run:
        not_without_overwrite(_finished(final, run, config), config)
    elif any(final.iterdir()):
        strange = SettingsError(
            f"{near(final)}: holds files that no stage of SlimTune wrote",
            "it has no run.json, so overwriting it might destroy something of yours",
            "choose another --output-dir, or add --overwrite",
        )
        not_without_overwrite(strange, config)


def _led_to(final: Path) -> Path:
    """What a link leads to; any other path is itself."""
    return final.resolve() if final.is_symlink() else final


def refuse_finished_files(manifest: Path, config: Config, outputs: Sequence[Path]) -> None:
    """The same for `outputs`, files in a shared folder, whose record is `manifest`.

    Raises SettingsError, too, where a folder or link has the name of one, or no record could name
    it, and what `require_writable` raises.
    """
    for file in (manifest, *outputs):
        if not is_plain(file.name):
            raise SettingsError(
                f"{near(file)}: {file.name!r} is no name that a record may hold",
                "records are read on every system, and on some it leads out of the folder",
                "choose an output without backslashes and control characters in its name",
            )
    require_free(manifest, outputs)
    for file in (manifest, *outputs):
        require_writable(file, config)
    if config.options.overwrite:
        return
    run = read_manifest(manifest)
    if run:
        first = manifest.with_name(next(iter(run["files"]), manifest.name))
        not_without_overwrite(_finished(first, run, config), config)
        return
    if waits(manifest):
        raise SettingsError(
            f"{near(ready_of(manifest))}: a run was stopped while its files moved to their places",
            "a dry run moves nothing",
            "run the command without --dry-run: it goes on with that",
        )
    if manifest.exists():
        strange = SettingsError(
            f"{near(manifest)}: no record that SlimTune wrote",
            "a file of this name is to be written, and this one might be yours",
            "choose another output, or add --overwrite",
        )
        not_without_overwrite(strange, config)


def not_without_overwrite(why: SettingsError, config: Config, needed: str = "--overwrite") -> None:
    """Raise `why` the output may not be replaced; a dry run, which replaces nothing, only says it.

    Who asks beside finished output what another run would take is answered.
    """
    if not config.options.dry_run:
        raise why
    note(f"caution: {why.what}: the run itself would need {needed}")


def _taken(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"{near(path)}: its place is taken",
        why,
        f"move {near(path)} away, or choose another output",
    )


def _finished(path: Path, run: dict[str, Any], config: Config) -> SettingsError:
    resumed = "this run has finished, nothing is left for --resume; "
    return SettingsError(
        f"{near(path)}: exists already ({run['stage']}, {run['started']})",
        (resumed if config.options.resume else "")
        + "finished output is never overwritten silently",
        "go on with the next script, name another output to keep both, or add --overwrite",
    )


def _lock(output: Path) -> AbstractContextManager[None]:
    """The lock beside an output, with the words by which another run learns who holds it."""
    return only_writer(output, since=now(), command=" ".join(command()))


def _swap(partial: Path, final: Path) -> None:
    """The finished partial folder under its own name; the old one goes only afterwards."""
    cure = (
        f"close it, remove {near(final)} if it is still there, and rename {near(partial)} to "
        f"{near(final)} by hand: the run has finished, and is whole in there"
    )
    if not final.exists():
        move(partial, final, cure)
        flush(final.parent)
        return
    # Not NAME.old: that may be a copy which the user has put aside.
    aside = Path(mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        move(final, aside / final.name, cure)
        try:
            move(partial, final, cure)
        except Exception:
            move(aside / final.name, final, cure)
            raise
    except Exception:
        remove_empty(aside)
        raise
    flush(final.parent)
    clear(aside)
