"""The documents as tests read them: blocks, prose and shell lines, in a reader's order."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TWINS = ("README", "QUICK_START", "OPTIMIZATION_GUIDE")  # in the order in which they are read
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a document, as a shell would hand it on, and the block that it stands in."""

    document: str
    block: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def prose_of(file: Path) -> str:
    """A document without its code blocks."""
    return BLOCK.sub("", text_of(file))


def shell_commands(document: str) -> list[Command]:
    """Every command of the bash blocks, in order; `a && b` are two."""
    found = []
    for language, block in BLOCK.findall(text_of(ROOT / document)):
        for line in block.splitlines() if language == "bash" else ():
            lines = line.split(" && ")
            words = [tuple(shlex.split(one, comments=True)) for one in lines]
            found += [Command(document, block, one) for one in words if one]
    return found
