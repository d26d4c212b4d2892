"""The Chinese of `chinese.yaml` for what schema and catalogues say in English.

It is read only where somebody asks for it. What a setting's choices are is told by its catalogue,
in either language, so that a new entry is one line of each file.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_suffix(".yaml")


def of_section(section: str) -> str:
    """What a section is about, one sentence."""
    return _read()["sections"][section]


def of_setting(section: str, name: str, catalogue: str | None) -> str:
    """The help of a setting, and a line for each choice where its choices are a catalogue's."""
    own = _read()["settings"][section][name]
    return own if catalogue is None else f"{own}\n{_listed(catalogue)}"


def of_script(script: str) -> Mapping[str, str]:
    """purpose, reads, writes."""
    return _read()["scripts"][script]


def of_option(name: str) -> str:
    """What an option of a run (overwrite, resume, ...) does."""
    return _read()["run"][name]


def _listed(catalogue: str) -> str:
    lines = [f"{name}：{help}" for name, help in _read()["catalogues"][catalogue].items()]
    return "；\n".join(lines) + "。"


@cache
def _read() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))
