"""The schema as command-line flags: flat, dashed, the words users know."""

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from slimtune.config import SCRIPTS, Config
from slimtune.errors import SettingsError
from slimtune.settings.foreign_flags import instead, our_value, ours
from slimtune.settings.languages import (
    OPTIONS,
    TITLES,
    asked_language,
    in_one_line,
    lines,
    of_option,
    of_script,
    of_setting,
)
from slimtune.settings.yaml_file import Given, Mistake, SettingPath, WrittenSettings, scalar


def section_fields(section: str) -> dict[str, FieldInfo]:
    """The fields of a section of the schema by name."""
    return Config.model_fields[section].annotation.model_fields


def fields_alone() -> dict[str, str]:
    """Section -> its field whose flag is called as the section: a word in its place is for it."""
    return {
        section: name
        for section in Config.model_fields
        for name, field in section_fields(section).items()
        if (field.json_schema_extra or {}).get("flag") == section
    }


def fields_of(script: str) -> Iterator[tuple[str, str, FieldInfo]]:
    """(section, name, field) of every setting that a script shows, its own section first."""
    for entry in SCRIPTS[script]:
        section, _, only = entry.partition(".")
        for name, field in section_fields(section).items():
            if not only or name == only:
                yield section, name, field


def flags_of(script: str) -> dict[str, SettingPath]:
    """Flag without dashes -> (section, field). The first field of a name owns the plain flag."""
    flags: dict[str, SettingPath] = {}
    for section, name, field in fields_of(script):
        flag = (field.json_schema_extra or {}).get("flag") or name.replace("_", "-")
        if flag in flags:
            flag = f"{section.replace('_', '-')}-{flag}"
        flags[flag] = (section, name)
    return flags


def named(setting: str) -> str:
    """How who runs this script changes `section.name`: by its flag, or in the file without one."""
    flag = _flag_here(setting)
    return f"--{flag}" if flag else f"{setting} in config.yaml"


def shown(*settings: str) -> list[str]:
    """Those of the settings that the running script has, by their flags: for an error's cure."""
    return [f"--{flag}" for flag in map(_flag_here, settings) if flag]


# What takes less memory: lowered, or added; the order is that of what it costs.
_LOWERED = ("training.batch_size", "training.max_length", "pruning.calibration_length")
_ANSWERING = ("evaluation.token_budget", "generation.max_new_tokens")  # where rows are asked
_ADDED = ("training.activation_checkpointing", "model.quantization")


def less_memory() -> str:
    """What who runs this script can do where memory is short, by its own flags."""
    asks = shown(*_ANSWERING) if shown(_ANSWERING[0]) else []
    ways = [("lower", [*shown(*_LOWERED), *asks]), ("add", shown(*_ADDED))]
    said = [f"{verb} {' or '.join(flags)}" for verb, flags in ways if flags]
    return ", ".join([*said, "or take a smaller model"]) if said else "take a smaller model"


def _flag_here(setting: str) -> str | None:
    script = Path(sys.argv[0]).stem
    if script not in SCRIPTS:
        return None
    paths = {".".join(path): flag for flag, path in flags_of(script).items()}
    return paths.get(setting)


def is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list, which a flag writes with commas."""
    return get_origin(field.annotation) is list


def read_flags(
    script: str, doc: str, arguments: Sequence[str]
) -> tuple[argparse.Namespace, WrittenSettings]:
    """The options of this run and the settings given as flags; unknown flags are mistakes."""
    flags = flags_of(script)
    arguments = [_dashed(word, flags) for word in arguments]
    parser = _parser(script, doc, asked_language(arguments))
    options, unknown = parser.parse_known_args(arguments)
    written = WrittenSettings(mistakes=list(_unknown(unknown, script, flags)))
    for flag, (section, name) in flags.items():
        text = getattr(options, f"{section}.{name}")
        if text is not None:
            value = _value(text, section_fields(section)[name])
            given = Given(value, f"--{flag}", Path.cwd())
            written.sections.setdefault(section, {})[name] = given
    return options, written


def _dashed(word: str, flags: dict[str, SettingPath]) -> str:
    """A flag of ours with the underscores that others write: `--lora_alpha` is `--lora-alpha`."""
    name, equals, value = word.partition("=")
    dashed = name.replace("_", "-")
    ours = dashed.startswith("--") and (dashed[2:] in flags or dashed[2:] in OPTIONS)
    return f"{dashed}{equals}{value}" if ours else word


def typed_settings(options: argparse.Namespace) -> dict[str, str]:
    """{"section.name": text} of the settings that were flags."""
    given = vars(options).items()
    return {name: text for name, text in given if "." in name and text is not None}


def _value(text: str, field: FieldInfo) -> Any:
    """Text stays text where the schema wants text: `--output-name 1e3` names a file."""
    if is_list(field):
        return [part.strip() for part in text.split(",") if part.strip()]
    if field.annotation == str | None:
        return None if text == "null" else text
    return text if field.annotation in (str, Path) else scalar(text)


def _unknown(words: Sequence[str], script: str, flags: dict[str, SettingPath]) -> Iterator[Mistake]:
    for place, word in enumerate(words):
        if word.startswith("-"):
            flag, equals, value = word.lstrip("-").partition("=")
            following = words[place + 1 : place + 2]
            if not equals and following and not following[0].startswith("-"):
                value = following[0]
            why = "this script has no such setting"
            cure = _instead(flag, value or "true", script, flags)
            yield Mistake(f"--{flag}: unknown flag", why, cure)
        elif not words[max(0, place - 1)].startswith("-"):
            yield Mistake(f"{word}: unexpected word", "every value needs its flag", "see --help")


def _instead(flag: str, value: str, script: str, flags: dict[str, SettingPath]) -> str:
    """Another tool's name for it, what is done in its place, the script that has it, or a name
    written nearly so."""
    names = {".".join(path): name for name, path in flags.items()}
    written = our_value(flag, value)
    more = f" {written}" if written else ""
    verb = "it is" if written else "it is called"
    meant = [one if one.startswith("--") else f"--{names.get(one, '')}" for one in ours(flag)]
    known = next((one for one in meant if one != "--"), None)
    if known:
        return f"{verb} {known}{more} here"
    said = instead(flag, lambda one: f"--{names[one]}" if one in names else f"{one} in config.yaml")
    if said:
        return said
    for other in sorted(SCRIPTS, key=lambda one: not _whole_sections(one, ours(flag))):
        theirs = flags_of(other)
        paths = {".".join(path): name for name, path in theirs.items()}
        dashed = flag.replace("_", "-")
        name = dashed if dashed in theirs else next(filter(None, map(paths.get, ours(flag))), None)
        if name:
            return f"it is --{name}{more} of {other}.py"
    near = difflib.get_close_matches(flag.replace("_", "-"), [*OPTIONS, *flags], n=1)
    return f"did you mean --{near[0]}?" if near else "see --help for all flags"


def _whole_sections(script: str, settings: Sequence[str]) -> bool:
    """Whether a script is the one that a setting is for, and does not show it for another's."""
    return any(one.partition(".")[0] in SCRIPTS[script] for one in settings)


_LONGEST_CHOICES = 56  # characters of --help's first column, in a terminal of 80


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise SettingsError(
            f"command line: {message}", "a flag takes one value", f"see {self.prog} --help"
        )


class _ChineseHelp(argparse.RawDescriptionHelpFormatter):
    """Lines are broken by the cells that they take, which textwrap does not know."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return lines(text, width)


@cache
def _parser(script: str, doc: str, language: str) -> _Parser:
    titles, chinese = TITLES[language], language == "zh"
    usage = f"python finetune/{script}.py [--flag value ...]"
    about = of_script(script, doc, language)
    parser = _Parser(
        prog=f"{script}.py",
        usage=argparse.SUPPRESS if chinese else usage,
        description=f"{titles['usage']}{usage}\n\n{about}" if chinese else about,
        allow_abbrev=False,
        add_help=False,
        formatter_class=_ChineseHelp if chinese else argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[str, Any] = {}
    for flag, (section, name) in flags_of(script).items():
        if section not in groups:
            groups[section] = parser.add_argument_group(titles["section"].format(section))
        field = section_fields(section)[name]
        help = in_one_line(of_setting(section, name, field, language), language)
        bare = "true" if field.annotation is bool else (field.json_schema_extra or {}).get("bare")
        switch = {"nargs": "?", "const": bare} if bare else {}
        groups[section].add_argument(
            f"--{flag}",
            dest=f"{section}.{name}",
            help=f"{help} [{_shown(field.default)}]".replace("%", "%%"),
            metavar=_metavar(field),
            **switch,
        )
    _add_options(parser.add_argument_group(titles["run"]), language)
    return parser


def _add_options(group: Any, language: str) -> None:
    """What any script can be asked."""
    for name in OPTIONS:
        words = ["-h", "--help"] if name == "help" else [f"--{name}"]
        kind = {"help": "help"}.get(name, "store_true")
        more = {"metavar": "FILE"} if name == "config" else {"action": kind}
        group.add_argument(*words, help=of_option(name, language), **more)


def _metavar(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true|false"
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    named = "|".join(choices)
    if len(named) > _LONGEST_CHOICES:
        return "NAME"  # the help has a line for each
    return named or ("A,B" if is_list(field) else "VALUE")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return {None: "none", "": "empty"}.get(value, str(value))
