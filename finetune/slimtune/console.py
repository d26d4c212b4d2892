"""Words to the user: errors with exit codes, progress, the closing "wrote / next" lines.

Results go to stdout, progress and log to stderr. Every error the user can cause is a
`SlimTuneError`: three lines (what and where, why, what to do) and an exit code of its own;
anything else is a bug of ours and exits 1.
"""

import errno
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any


class ExitCode(IntEnum):
    OK = 0
    BUG = 1
    SETTINGS = 2
    INPUT = 3
    RESOURCES = 4
    QUALITY = 5
    LOCKED = 6
    INTERRUPTED = 130


class SlimTuneError(Exception):
    """A failure the user can act on: `what` (and where), `why`, and the `cure`, one line each."""

    exit_code = ExitCode.BUG

    def __init__(self, what: str, why: str, cure: str) -> None:
        super().__init__(what, why, cure)
        self.what, self.why, self.cure = what, why, cure

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another whatever a subclass asks to be made of: one that could not be
        made again there counted as a process that was ended from outside."""
        return _made_again, (type(self), self.args, vars(self))

    def __str__(self) -> str:
        return masked(f"{self.what}\n  why: {self.why}\n  do:  {self.cure}")


def _made_again(kind: type[SlimTuneError], args: tuple[str, ...], told: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)  # which keeps `args`, as every exception does
    vars(error).update(told)
    return error


class SettingsError(SlimTuneError):
    """A setting is unknown, malformed, or contradicts another (exit 2)."""

    exit_code = ExitCode.SETTINGS


class InputError(SlimTuneError):
    """Data or a model is missing, unreadable, or not what the stage needs (exit 3)."""

    exit_code = ExitCode.INPUT


class ResourceError(SlimTuneError):
    """Memory, disk, a device or a program is missing (exit 4)."""

    exit_code = ExitCode.RESOURCES


class QualityError(SlimTuneError):
    """The stage ran and its result failed its own check (exit 5)."""

    exit_code = ExitCode.QUALITY


class LockedError(SlimTuneError):
    """Another run is writing the same output (exit 6)."""

    exit_code = ExitCode.LOCKED


_MASK = "***"
# What a secret looks like, by those who give them out: (what is kept, what is masked). Words of
# ordinary texts that begin alike (sk-learn, Bearer of news) have no digit, or are shorter.
_SECRETS = re.compile(
    r"""
    (?P<kept>
        (?<![A-Za-z0-9]) (?:
            hf_ (?=[A-Za-z0-9]{16})                # Hugging Face
          | sk- (?=[\w-]*\d) (?=[\w-]{16})         # OpenAI, Anthropic and what is alike
          | gh[oprsu]_ (?=[A-Za-z0-9]{16})         # GitHub
          | github_pat_ (?=\w{16})
          | glpat- (?=[\w-]{16})                   # GitLab
          | (?:AKIA|ASIA) (?=[A-Z0-9]{16})         # Amazon
        )
      | (?i:\bBearer[ ]+) (?=\S*\d|\S{20})        # a header of HTTP
      | [?&](?i:(?:api[_-]?|access[_-]?)?(?:key|token)|password|secret)=   # of an address
    ) [\w.~+/=-]{4,}
    | (?P<scheme> https?:/{1,2} | \b[a-z][\w+.-]+://) [^\s/@]+ @   # a Path has one slash left
    """,
    re.VERBOSE,
)
# Keys that no pattern knows; a server that refuses one repeats it in its error.
_KEYS = ("SLIMTUNE_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")
_SHORTEST_KEY = 8  # a shorter one may be a word


def masked(text: str) -> str:
    """`text` with *** for each secret in it: all that is printed, logged, recorded or put on a card
    passes here. What kind it is, and where an address leads, stays to be read.
    """
    text = _SECRETS.sub(_without, text)
    for name in _KEYS:
        key = os.environ.get(name, "")
        if len(key) >= _SHORTEST_KEY:
            text = text.replace(key, _MASK)
    return text


def _without(secret: re.Match[str]) -> str:
    return f"{secret['scheme']}{_MASK}@" if secret["scheme"] else f"{secret['kept']}{_MASK}"


def masked_in(value: Any) -> Any:
    """`masked` for each text in a value of JSON, names of objects left as they are."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {name: masked_in(one) for name, one in value.items()}
    return [masked_in(one) for one in value] if isinstance(value, list | tuple) else value


_KINDS = {
    ExitCode.BUG: "a fault of SlimTune",
    ExitCode.SETTINGS: "settings",
    ExitCode.INPUT: "data or model",
    ExitCode.RESOURCES: "memory, disk, device or program",
    ExitCode.QUALITY: "the result failed its own check",
    ExitCode.LOCKED: "another run writes it",
}


def tell_error(error: SlimTuneError) -> int:
    """Print an error that ends the script, last its exit code, by which QUICK_START's table finds
    it; the code is returned. Where nobody reads what it says, the code alone has to do."""
    code = ExitCode(error.exit_code)
    with suppress(OSError):
        note(f"error: {error}\n  exit code {int(code)}: {_KINDS[code]}")
    return code


def start_logging() -> None:
    """Library words to stderr as plain lines; UTF-8 on both streams whatever the locale."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(message)s"))
    # It says on import that an optional kernel is missing, whether 4 bits are asked for or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logger = logging.getLogger("slimtune")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _shown(text: str) -> str:
    """Words to stderr without secrets, paths below the working directory said from there."""
    text = runnable(text)
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return masked(text)
    if Path(here).parent != Path(here):
        text = re.sub(rf"(?<![\w/.-]){re.escape(here + os.sep)}(?=[^\s/])", "", text)
    return masked(text)


def tenth_done(before: int, done: int, total: int) -> bool:
    """Whether another tenth of the way is behind: progress in a file is ten lines, not hundreds."""
    return done >= total or 10 * done // total > 10 * before // total


def processes() -> int:
    """How many processes run this script together: `accelerate launch` says so to each."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Whether this is the one that writes, locks and speaks."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """A word on progress, to stderr."""
    print(_shown(text), file=sys.stderr, flush=True)


def wrote(*paths: Path, numbers: Mapping[str, object], next: str) -> None:
    """The last words of a script: what it wrote, the key numbers, the next command."""
    for path in paths:
        print(masked(f"wrote  {near(path)}"))
    for name, value in numbers.items():
        print(masked(f"       {name}: {value}"))
    print(masked(f"next:  {runnable(next)}"), flush=True)


def would_write(*paths: Path, estimates: Mapping[str, object]) -> None:
    """The last words of a `--dry-run`: what would be written, and what it would take."""
    for path in paths:
        print(masked(f"would write  {near(path)}"))
    for name, value in estimates.items():
        print(masked(f"             {name}: {value}"))
    print("dry run: settings and inputs are fine, nothing was written", flush=True)


_PLACE = "at "  # how the note begins that `naming` leaves in an error


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """Within, an error that names no file will be told with this one, unless one inside named it.

    What libraries in Rust and C++ raise, and a write that fails, name none.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, SlimTuneError) and place_of(error) is None:
            error.add_note(f"{_PLACE}{place}")
        raise


def place_of(error: BaseException) -> str | None:
    """The file or folder that an error names, by itself or within `naming`."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename)
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][1])  # (source, target, why) of each that failed
    for text in getattr(error, "__notes__", ()):
        if text.startswith(_PLACE):
            return text.removeprefix(_PLACE)
    return None


def near(path: Path | str) -> str:
    """A path as short as it can be said from the working directory."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def to_paste(script: str, *words: str) -> str:
    """A command line of one of the scripts as it pastes into a shell: blanks, brackets, quotes."""
    return " ".join(["python", *map(quoted, [f"finetune/{script}.py", *words])])


_SCRIPTS = Path(__file__).resolve().parents[1]
_COMMAND = re.compile(r"(?<=\bpython )finetune/(\w+\.py)\b")


def runnable(text: str) -> str:
    """Commands of ours in `text` as they run where the user is: `python finetune/NAME.py` is how
    they run in the project's folder, elsewhere the script is named from there.
    """
    try:
        return _COMMAND.sub(lambda named: quoted(near(_SCRIPTS / named[1])), text)
    except OSError:  # the working directory was removed
        return text


_PLAIN = re.compile(r"[\w@%+:,./-][\w@%+=:,./-]*")


# In PowerShell a comma parts words and @ begins a name, in cmd % does: those are quoted there.
_PLAIN_ON_WINDOWS = re.compile(r"[\w+:./\\=-]+")


def quoted(word: str, windows: bool = sys.platform == "win32") -> str:
    """A word as it pastes into a shell. Chinese letters need no quotes there.

    On Windows one form for both shells: cmd knows double quotes only. PowerShell reads $ and ` in
    them, so that a word with one of these is for PowerShell alone.
    """
    if not windows:
        return word if _PLAIN.fullmatch(word) else shlex.quote(word)
    if _PLAIN_ON_WINDOWS.fullmatch(word):
        return word
    if "$" in word or "`" in word:
        return "'" + word.replace("'", "''") + "'"
    # Before a quote a program halves backslashes, and one that is left escapes the quote.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


_SHORTEST_NAME = 8  # cells of the first column, however narrow the terminal


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout: the first column to the left, numbers to the right.

    No figure is ever cut. Where a terminal is too narrow, the names in the first column lose their
    middle: models differ at both ends.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    def drawn(longest: int) -> tuple[Table, int]:
        shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
        for index, header in enumerate(headers):
            shown.add_column(header, justify="left" if index == 0 else "right", no_wrap=True)
        for name, *figures in rows:
            shown.add_row(_without_middle(name, longest), *figures)
        # rich's own measure ends at the width of the console that is asked.
        return shown, Console(width=10_000, markup=False, emoji=False).measure(shown).maximum

    longest = max((cell_len(row[0]) for row in rows), default=0)
    shown, width = drawn(longest)
    console = Console(file=sys.stdout, markup=False, emoji=False)
    if console.is_terminal and width > console.width:
        shown, width = drawn(max(_SHORTEST_NAME, longest - (width - console.width)))
    console.width = width
    # Not by rich itself: it ends the process with 1 where the reader of its words is gone.
    with console.capture() as drawn_lines:
        console.print(shown)
    print(drawn_lines.get(), end="", flush=True)


def _without_middle(text: str, cells: int) -> str:
    """At most so many cells of a terminal, … for what is left out; Chinese characters take two."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= cells:
        return text
    head = (cells - 1) // 2
    tail = set_cell_size(text[::-1], cells - 1 - head)[::-1]
    return f"{set_cell_size(text, head).rstrip()}…{tail.lstrip()}"


def size(count: float) -> str:
    """Bytes in words: `size(11_900_000) == "11.9 MB"`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


@contextmanager
def decoration(what: str) -> Iterator[None]:
    """Within, what fails is left out with a word: no card or picture is worth a finished stage.

    A run that is stopped, a full disk, missing memory and a failed check of quality are no
    decoration: they end the stage as anywhere else.
    """
    try:
        yield
    except (QualityError, ResourceError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = str(error).splitlines()
        reason = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
        logging.getLogger(__name__).warning("caution: %s is left out (%s)", what, reason)
