"""config.yaml as written: values with their lines, read by YAML 1.2's rules.

PyYAML follows YAML 1.1, where `1e-4` is a string and `no` is false; here only true and false are
booleans, every number is a number, and a key written twice is a mistake.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from slimtune.console import SettingsError

SettingPath = tuple[str, str]  # (section, field)


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with the settings: what and where, why, and what to do."""

    what: str
    why: str
    cure: str


@dataclass(frozen=True)
class Given:
    """A value as written, where it was written, and the folder that its paths are relative to."""

    value: Any
    where: str
    folder: Path


@dataclass
class WrittenSettings:
    """Everything found in one source: {section: {field: Given}} and the mistakes met on the way."""

    sections: dict[str, dict[str, Given]] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


class _Yaml12(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""


_Yaml12.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def scalar(text: str) -> Any:
    """The value of one YAML scalar: `scalar("1e-4") == 0.0001`, `scalar("no") == "no"`."""
    loader = _Yaml12("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text), deep=True)


def read_yaml(file: Path, alone: Mapping[str, str] = MappingProxyType({})) -> WrittenSettings:
    """The settings of a config.yaml; raises SettingsError where it is no YAML at all.

    `alone` names, for some sections, the field that a single word in the section's place is for.
    """
    try:
        root = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=_Yaml12)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise SettingsError(
            f"{file.name}{f':{mark.line + 1}' if mark else ''}: cannot be read as YAML",
            " ".join(str(getattr(error, "problem", None) or error).split()),
            "mend that line: UTF-8, two spaces of indentation, a space after each colon",
        ) from None
    written = WrittenSettings()
    folder = file.resolve().parent
    for section, body, where in _pairs(root, file.name, "", written.mistakes):
        written.lines[section] = where
        if section in alone and isinstance(body, yaml.ScalarNode) and body.value:
            value = _Yaml12("").construct_object(body, deep=True)
            written.sections[section] = {alone[section]: Given(value, where, folder)}
            continue
        written.sections[section] = {
            name: Given(_Yaml12("").construct_object(node, deep=True), place, folder)
            for name, node, place in _pairs(body, file.name, section, written.mistakes)
        }
    return written


def _pairs(
    node: yaml.Node | None, file: str, section: str, mistakes: list[Mistake]
) -> Iterator[tuple[str, yaml.Node, str]]:
    """Key, value and "file:line" of a mapping; nothing for an empty one."""
    if node is None or node.tag.endswith(":null"):
        return
    if not isinstance(node, yaml.MappingNode):
        mistakes.append(
            Mistake(
                f"{file}:{node.start_mark.line + 1}: {section or 'the file'} holds no settings",
                "a section is a list of `name: value` lines, indented below its name",
                f"write `{section or 'model'}:` and its settings below it",
            )
        )
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in first:
            full = f"{section}.{name}" if section else name
            mistakes.append(
                Mistake(
                    f"{file}:{line}: {full} is written twice",
                    f"it stands in line {first[name]} too",
                    "keep one of the two",
                )
            )
        else:
            first[name] = line
            yield name, value, f"{file}:{line}"
