"""Words to the user: progress, tables, commands to paste, the closing "wrote / next" lines.

Results go to stdout, progress and log to stderr.
"""

import errno
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from slimtune.errors import KINDS, ExitCode, QualityError, ResourceError, SlimTuneError
from slimtune.masking import masked


def tell_error(error: SlimTuneError) -> int:
    """Print an error that ends the script, last its exit code, by which QUICK_START's table finds
    it; the code is returned. Where nobody reads what it says, the code alone has to do."""
    code = ExitCode(error.exit_code)
    with suppress(OSError):
        note(f"error: {error}\n  exit code {int(code)}: {KINDS[code]}")
    return code


def start_logging() -> None:
    """Library words to stderr as plain lines; UTF-8 on both streams whatever the locale."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(message)s"))
    # It says on import that an optional kernel is missing, whether 4 bits are asked for or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # On an empty HOME it tells of its font cache in the middle of a training.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    logger = logging.getLogger("slimtune")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return fitted(_shown(super().format(record)), sys.stderr)


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
    print(fitted(_shown(text), sys.stderr), file=sys.stderr, flush=True)


def wrote(*paths: Path, numbers: Mapping[str, object], next: str) -> None:
    """The last words of a script: what it wrote, the key numbers, the next command."""
    for path in paths:
        print(masked(f"wrote  {near(path)}"))
    for name, value in numbers.items():
        print(fitted(masked(f"       {name}: {value}"), sys.stdout))
    print(masked(f"next:  {runnable(next)}"), flush=True)


def would_write(*paths: Path, estimates: Mapping[str, object]) -> None:
    """The last words of a `--dry-run`: what would be written, and what it would take."""
    for path in paths:
        print(masked(f"would write  {near(path)}"))
    for name, value in estimates.items():
        print(fitted(masked(f"             {name}: {value}"), sys.stdout))
    print("dry run: settings and inputs are fine, nothing was written", flush=True)


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


# Words that begin a command to paste: a line with one is left to the terminal, which breaks it
# without a newline.
_PASTED = re.compile(
    r"(?<![\w./-])(?:python3?|pip|hf|ollama|sudo|iconv|export|accelerate|llama-\w+) [\w-]"
)
_HANGING = 2  # cells that what is left of a line stands further in


def fitted(text: str, stream: TextIO) -> str:
    """Lines broken at spaces where `stream` is a terminal that is narrower; no number or word is
    cut in two. Commands stay whole, so that they paste."""
    width = terminal_width(stream)
    if width is None:
        return text
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def terminal_width(stream: TextIO) -> int | None:
    """Cells of a line of the terminal that `stream` is; None where it is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # a file, a pipe, no longer open
        return None


def _broken(line: str, width: int) -> str:
    if 2 * len(line) <= width or _PASTED.search(line):
        return line
    try:
        from slimtune.wrapping import wrap
    except ImportError:  # no rich: which packages are missing is what is told
        return line
    indent = line[: len(line) - len(line.lstrip())]
    if len(indent) + _HANGING >= width:
        return line
    first, *_ = wrap(line[len(indent) :], width - len(indent), whole_words=True)
    rest = line[len(indent) + len(first) :].strip()
    hanging = indent + " " * _HANGING
    following = wrap(rest, width - len(hanging), whole_words=True) if rest else []
    return "\n".join([indent + first, *(hanging + one for one in following)])


_SHORTEST_NAME = 8  # cells of the first column, however narrow the terminal


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, spare: int = 0) -> None:
    """Print a table to stdout: the first column to the left, numbers to the right.

    No figure is ever cut. Where a terminal is too narrow, the last `spare` columns are left out,
    and then the names in the first column lose their middle: models differ at both ends.
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
    if spare and console.is_terminal and width > console.width:
        table(headers[:-spare], [row[:-spare] for row in rows])
        return
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
