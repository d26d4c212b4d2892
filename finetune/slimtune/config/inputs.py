"""Several inputs in one setting: files or folders parted by commas, each with its weight.

    a.csv,b.jsonl          both
    a.csv:2,b.jsonl:0.5    the rows of a.csv twice, half of those of b.jsonl

and a base with an adapter on top, both files for llama.cpp:

    base.gguf+adapter.gguf, ollama:NAME+adapter.gguf

A name that exists is one, whatever commas, colons, pluses or drive letters are in it.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_WEIGHTED = re.compile(r"(.+):(\d{1,6}(?:\.\d{1,9})?)", re.DOTALL)


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


def split_adapter(reference: str, folder: Path = Path()) -> tuple[str, str | None]:
    """(base, adapter) of `base.gguf+adapter.gguf`; (reference, None) of all else.

    Of several places to part it the first whose base exists is taken, else the first. A folder
    before the plus is a base as well where it exists: whoever asks can say what is wrong with it.
    """
    pluses = [place for place, char in enumerate(reference) if char == "+"]
    bases = [reference[:place] for place in pluses if place + 1 < len(reference)]
    bases = [base for base in bases if _may_carry(base, reference, folder)]
    if not bases or _exists(reference, folder) or reference.startswith("http"):
        return reference, None
    base = next((base for base in bases if _exists(base, folder)), bases[0])
    return base, reference[len(base) + 1 :]


def _may_carry(base: str, reference: str, folder: Path) -> bool:
    if base.endswith(".gguf") or base.startswith("ollama:"):
        return True
    return reference.endswith(".gguf") and _exists(base, folder)


def join_adapter(base: str, adapter: str) -> str:
    """What `split_adapter` parts."""
    return f"{base}+{adapter}"


def _exists(name: str, folder: Path) -> bool:
    return os.path.exists(folder / Path(name).expanduser())


def _one(name: str, folder: Path) -> Input:
    whole = folder / Path(name).expanduser()
    weighted = _WEIGHTED.fullmatch(name)
    if weighted is None or os.path.exists(whole):
        return Input(whole)
    return Input(folder / Path(weighted[1]).expanduser(), float(weighted[2]))
