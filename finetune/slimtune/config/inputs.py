"""Several inputs in one setting: files or folders parted by commas, each with its weight.

    a.csv,b.jsonl          both
    a.csv:2,b.jsonl:0.5    the rows of a.csv twice, half of those of b.jsonl

A name that exists is one, whatever commas, colons or drive letters are in it.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)", re.DOTALL)


@dataclass(frozen=True)
class Input:
    """A file or folder, and how often each of its rows is used: 2 repeats, 0.5 draws half."""

    path: Path
    weight: float = 1.0


def split_inputs(written: Path | str, folder: Path = Path()) -> list[Input]:
    """The inputs that a setting names; relative ones lie in `folder`.

    At each place the longest name that exists is taken; what is missing ends at its comma.
    """
    parts = str(written).split(",")
    found: list[Input] = []
    start = 0
    while start < len(parts):
        for end in range(len(parts), start, -1):
            name = ",".join(parts[start:end]).strip()
            one = _one(name, folder)
            if name and (os.path.exists(one.path) or end == start + 1):
                found.append(one)
                break
        start = end
    return found


def join_inputs(inputs: Iterable[Input]) -> Path:
    """The setting that names them."""
    named = [str(one.path) + (f":{one.weight:g}" if one.weight != 1 else "") for one in inputs]
    return Path(",".join(named) or ",")  # "" would be the working directory


def _one(name: str, folder: Path) -> Input:
    whole = folder / Path(name).expanduser()
    weighted = _WEIGHTED.fullmatch(name)
    if weighted is None or os.path.exists(whole):
        return Input(whole)
    return Input(folder / Path(weighted[1]).expanduser(), float(weighted[2]))
