"""config.yaml as written: values with their lines, read by YAML 1.2's rules.

PyYAML follows YAML 1.1, where `1e-4` is a string and `no` is false; here only true and false are
booleans, every number is a number, and a key written twice is a mistake. Settings may come with
somebody else's project: a file holds plain values and nothing that builds, repeats or nests.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from slimtune.errors import SettingsError

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
    flat: dict[str, Given] = field(default_factory=dict)  # what stands in no section
    lines: dict[str, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


_LARGEST = 1 << 20  # bytes: the file that ships has 35,000
_DEEPEST = 8  # lists and sections within each other; a setting's list is the second
_MOST_DIGITS = 300  # of a whole number: Python refuses 4,300, a float holds 308
_LONGEST_NAME = 100
# Half characters, NUL, and what a terminal obeys: written "\ud800", "\0", "\e" in quotes.
_NO_TEXT = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class _Yaml12(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema.

    It refuses tags (`!!python/...` builds objects, `!!int x` fails in the constructor), aliases of
    anything but a value (nine lists of nine aliases each are a list of 387,420,489 words), what
    nests deeper than settings do, names that are no words, and texts with NUL or half a character.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            self._refuse(event, f"the tag {event.tag[:60]!r} is no plain value")
        if self.depth > _DEEPEST:
            self._refuse(event, f"lists or sections nest deeper than {_DEEPEST} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        plain = isinstance(node, yaml.ScalarNode)
        if isinstance(event, yaml.AliasEvent) and not plain:
            self._refuse(event, f"the alias *{event.anchor[:60]} repeats a list or a section")
        if plain and (found := _NO_TEXT.search(node.value)):
            self._refuse(event, f"no setting holds the character U+{ord(found[0]):04X}")
        is_name = isinstance(parent, yaml.MappingNode) and index is None
        if is_name and not (plain and len(node.value) <= _LONGEST_NAME):
            self._refuse(event, f"a name is one word of {_LONGEST_NAME} characters at most")
        return node

    def _refuse(self, event: yaml.Event, why: str) -> NoReturn:
        raise ComposerError(None, None, why, event.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """In YAML 1.2 a zero in front makes no octal number: 010 is ten, 09 a number too."""
        return int(node.value)


_Yaml12.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", rf"^[-+]?[0-9]{{1,{_MOST_DIGITS}}}$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Yaml12.add_constructor("tag:yaml.org,2002:int", _Yaml12.construct_yaml_int)


def scalar(text: str) -> Any:
    """The value of one YAML scalar: `scalar("1e-4") == 0.0001`, `scalar("no") == "no"`."""
    loader = _Yaml12("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text), deep=True)


def read_yaml(
    file: Path, alone: Mapping[str, str] = MappingProxyType({}), sections: Collection[str] = ()
) -> WrittenSettings:
    """The settings of a config.yaml; raises SettingsError where it is no YAML at all.

    `alone` names, for some sections, the field that a single word in the section's place is for.
    With `sections`, values of other names are those that stand in no section.
    """
    root = _composed(file)
    written = WrittenSettings()
    folder = file.resolve().parent
    for section, body, where in _pairs(root, file.name, "", written.mistakes):
        written.lines[section] = where
        if section in alone and isinstance(body, yaml.ScalarNode) and body.value:
            value = _Yaml12("").construct_object(body, deep=True)
            written.sections[section] = {alone[section]: Given(value, where, folder)}
            continue
        if sections and section not in sections and not isinstance(body, yaml.MappingNode):
            written.flat[section] = Given(
                _Yaml12("").construct_object(body, deep=True), where, folder
            )
            continue
        written.sections[section] = {
            name: Given(_Yaml12("").construct_object(node, deep=True), place, folder)
            for name, node, place in _pairs(body, file.name, section, written.mistakes)
        }
    return written


def _composed(file: Path) -> yaml.Node | None:
    """The nodes of a file, none within more than `_DEEPEST` others; SettingsError with the line."""
    try:
        if file.stat().st_size > _LARGEST:
            raise _unreadable(file.name, f"it has more than {_LARGEST:,} bytes: no settings")
        text = file.read_text(encoding="utf-8-sig")
        return _Yaml12(text).get_single_node()
    except ReaderError as error:  # it counts characters, not lines
        line = text[: error.position].count("\n") + 1
        unprintable = f"character U+{error.character:04X} may not stand in YAML"
        raise _unreadable(f"{file.name}:{line}", unprintable) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        why = f"byte 0x{error.object[error.start]:02X} is not UTF-8"
        raise _unreadable(f"{file.name}:{line}", why) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file.name}:{mark.line + 1}" if mark else file.name
        told = filter(None, (getattr(error, "context", None), getattr(error, "problem", None)))
        why = " ".join(", ".join(told).split()) or str(error)
        raise _unreadable(where, why) from None


def _unreadable(where: str, why: str) -> SettingsError:
    return SettingsError(
        f"{where}: cannot be read as YAML",
        why,
        "mend that line: plain values, UTF-8, two spaces of indentation, a space after each colon",
    )


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
