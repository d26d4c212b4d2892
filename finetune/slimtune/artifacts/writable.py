"""The output tried before anything is loaded: hours of work must not end at a closed door.

    require_writable(output, config)    # nothing is left behind, and a dry run only asks

What the system refuses is raised as it says it (an OSError that names the place);
`machine.refusals` has the words.
"""

import errno
import os
from pathlib import Path
from tempfile import TemporaryFile

from slimtune.config import Config
from slimtune.errors import naming
from slimtune.machine.disks import existing
from slimtune.machine.locks import no_folder

# The longest that is put around a name: `.NAME.holder.lock`, `NAME.PID.partial`.
_AROUND = len(".1234567.answers.partial")
_TRIED = b"\0" * (1 << 16)  # bytes: a full disk and a used-up quota still take an empty file


def require_writable(output: Path, config: Config) -> None:
    """Raise SettingsError or OSError unless a file or folder could be made under this name."""
    folder = existing(output.parent)
    if not folder.is_dir() or _is_broken_link(folder, output.parent):
        raise no_folder(output.parent)
    _require_short(folder, output)
    if config.options.dry_run:
        _ask(folder, output)
        return
    with naming(output), TemporaryFile(dir=folder) as tried:
        tried.write(_TRIED)
        tried.flush()


def _is_broken_link(there: Path, wanted: Path) -> bool:
    """Whether what is missing below `there` begins with a link that leads nowhere."""
    missing = wanted.absolute().relative_to(there).parts
    return bool(missing) and os.path.lexists(there / missing[0])


def _require_short(folder: Path, output: Path) -> None:
    """OSError for a name that the disk does not take with what is put around it."""
    if not hasattr(os, "pathconf"):  # Windows tells it when the lock is made
        return
    longest = os.pathconf(folder, "PC_NAME_MAX")
    above = output.absolute().relative_to(folder).parts[:-1]
    sizes = [len(os.fsencode(name)) for name in above]
    sizes.append(len(os.fsencode(output.name)) + _AROUND)
    if max(sizes) > longest:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(output))


def _ask(folder: Path, output: Path) -> None:
    if os.access(folder, os.W_OK | os.X_OK):
        return
    read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
    code = errno.EROFS if read_only else errno.EACCES
    raise OSError(code, os.strerror(code), str(output))
