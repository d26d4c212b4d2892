"""What other tools call our settings: who comes from them is answered with our names.

The names stand in `foreign_names.yaml`, which is read only where one was typed.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("foreign_names.yaml")
_PLACE = re.compile(r"\{([\w.]+)\}")


def ours(theirs: str) -> tuple[str, ...]:
    """The settings ("section.name") and flags ("--overwrite") that another tool's name may mean."""
    return tuple(_read()["ours"].get(_plain(theirs), ()))


def our_value(theirs: str, value: str) -> str | None:
    """What our setting is given for this value of theirs; None where values are the same."""
    known = _read()["values"].get(_plain(theirs), {})
    return known.get(value.lower(), known.get("other"))


def instead(theirs: str, called: Callable[[str], str]) -> str | None:
    """What is done in place of a name that is no setting here, settings named by `called`; None
    for a name that nobody knows."""
    said = _read()["sentences"].get(_plain(theirs))
    return said and _PLACE.sub(lambda named: called(named[1]), said)


def _plain(theirs: str) -> str:
    return theirs.lower().replace("_", "-")


@cache
def _read() -> dict[str, dict[str, Any]]:
    """ours, values, and a sentence for each name that has no setting here."""
    written = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    sentences = {name: one["say"] for one in written["instead"] for name in one["names"]}
    return {"ours": written["ours"], "values": written["values"], "sentences": sentences}
