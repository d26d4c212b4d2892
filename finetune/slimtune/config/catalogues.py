"""The catalogues of `catalogues.yaml`: what a user chooses by name, each name written once there.

A new divergence, shape, GGUF type or template is its function (or file) in its own room and one
entry of the YAML. The schema takes choices and help from here, the rooms bind their functions to
the names by `bind`. Nothing here is heavy, so that every room may use it.
"""

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_suffix(".yaml")

# Facts that every entry of a catalogue must state beside its help.
_FACTS = {
    "criteria": {"calibrated"},
    "shapes": {"columns", "reads"},
    "sample_kinds": {"file"},
    "templates": {"stops"},
    "optimizers": {"bytes", "rate", "bitsandbytes"},
    "gguf_types": {"tolerance"},
}


def names(catalogue: str) -> tuple[str, ...]:
    """The names of a catalogue in its order: what `Literal[...]` of a setting takes."""
    return tuple(_read()[catalogue])


def facts(catalogue: str, fact: str) -> dict[str, Any]:
    """name -> `fact` of every entry, in the catalogue's order."""
    return {name: entry[fact] for name, entry in _read()[catalogue].items()}


def listed(catalogue: str) -> str:
    """The help of a catalogue, "name: help" on one line each, as part of a setting's help."""
    lines = [f"{name}: {entry['help']}" for name, entry in _read()[catalogue].items()]
    return ";\n".join(lines) + "."


def bind(
    catalogue: str,
    parts: Mapping[str, Any],
    *,
    prefix: str = "",
    without: Collection[str] = (),
) -> dict[str, Any]:
    """name -> `parts[prefix + name]` in the catalogue's order, but for names that are `without`.

    `parts` is the globals() of the file that holds the functions, or a table of nothing but parts.
    Raises LookupError that names the entry whose part was forgotten, and of a table the part whose
    entry was.
    """
    if "__name__" not in parts:
        strangers = sorted(parts.keys() - set(names(catalogue)))
        if strangers:
            raise LookupError(f"{_FILE.name} has no entry {catalogue}.{strangers[0]}")
    bound = {}
    for name in names(catalogue):
        if name in without:
            continue
        if prefix + name not in parts:
            raise LookupError(
                f"{_FILE.name} lists {catalogue}.{name}, and there is no {prefix}{name} in "
                f"{parts.get('__name__', 'the table of its parts')}"
            )
        bound[name] = parts[prefix + name]
    return bound


@cache
def _read() -> dict[str, dict[str, dict[str, Any]]]:
    """catalogue -> name -> its help and facts."""
    written = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {catalogue: _entries(catalogue, entries) for catalogue, entries in written.items()}


def _entries(catalogue: str, written: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries as mappings; LookupError names one with a fact too few or too many."""
    needed = {"help"} | _FACTS.get(catalogue, set())
    entries = {}
    for name, entry in written.items():
        entries[name] = entry if isinstance(entry, dict) else {"help": entry}
        if entries[name].keys() != needed:
            raise LookupError(
                f"{_FILE.name}: {catalogue}.{name} must have {', '.join(sorted(needed))}, "
                f"and it has {', '.join(sorted(entries[name]))}"
            )
    return entries
