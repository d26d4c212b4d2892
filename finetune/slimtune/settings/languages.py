"""What `--help`, `--print-config` and the guide say of a setting, in English or Chinese.

English stands in the schema and in the scripts' docstrings, Chinese in config/chinese.yaml.
"""

import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from textwrap import wrap

from pydantic.fields import FieldInfo

from slimtune.config import Config, chinese

_WHOLE = {"break_long_words": False, "break_on_hyphens": False}
_RUN = {
    "help": "show this and stop",
    "config": "settings file (default: the project's config.yaml)",
    "print-config": "show the settings that this run would use, and stop",
    "dry-run": "check everything and estimate; write nothing",
    "overwrite": "replace finished output",
    "resume": "go on where a stopped run ended",
    "debug": "show the traceback of an error",
}
OPTIONS = tuple(_RUN)
# Headings of --help, and the first lines of config.yaml.
TITLES = {
    "en": {"section": "{} settings", "run": "this run", "usage": "usage:"},
    "zh": {"section": "{} 设置", "run": "本次运行", "usage": "用法："},
}
HEADS = {
    "en": "Every setting of SlimTune, in pipeline order. Flags of the scripts override it for one "
    "run;\n`--print-config` shows what a script would use. Paths are relative to this file.",
    "zh": "SlimTune 的全部设置，按流程顺序排列。命令行参数只在当次运行中覆盖它们；\n"
    "--print-config 显示脚本会使用的设置。路径相对于本文件。",
}
_CELLS = 88  # of a comment: as long as the English lines
_TERMINAL = 80


def asked_language(arguments: Sequence[str]) -> str:
    """zh where --language says so: --help ends a script before its settings are read."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--language", nargs="?")
    options, _ = parser.parse_known_args(arguments)
    return options.language if options.language in HEADS else "en"


def of_section(section: str, language: str) -> str:
    """What a section is about."""
    if language == "zh":
        return chinese.of_section(section)
    return Config.model_fields[section].annotation.__doc__.strip()


def of_setting(section: str, name: str, field: FieldInfo, language: str) -> str:
    """The help of a setting: what follows from it, then a line for each named choice."""
    if language == "zh":
        return chinese.of_setting(section, name, (field.json_schema_extra or {}).get("catalogue"))
    return field.description


def of_option(name: str, language: str) -> str:
    """What an option of a run does."""
    return chinese.of_option(name) if language == "zh" else _RUN[name]


def of_script(script: str, doc: str, language: str) -> str:
    """The head of --help: the docstring; in Chinese its commands without their English remarks."""
    if language == "en":
        return "\n\n".join("\n".join(_narrow(part)) for part in doc.strip().split("\n\n"))
    told = chinese.of_script(script)
    commands = [part for part in doc.split("\n\n") if part.startswith("    python ")]
    commands = ["\n".join(_narrow(re.sub(r" +# .*", "", part))) for part in commands]
    files = [line for part in ("reads", "writes") for line in _indented(told[part], part)]
    purpose = "\n".join(lines(told["purpose"], _TERMINAL))
    return "\n\n".join([purpose, *commands, "\n".join(files)])


def in_one_line(help: str, language: str) -> str:
    """A help without its breaks, which are blanks in English and nothing in Chinese."""
    return ("" if language == "zh" else " ").join(help.split("\n"))


def commented(text: str, language: str) -> list[str]:
    """The lines of a comment. English ones are broken where the schema breaks them."""
    return text.splitlines() if language == "en" else lines(text, _CELLS)


def lines(text: str, cells: int) -> list[str]:
    """Chinese lines at most so many cells wide."""
    from slimtune import wrapping  # rich, which English help does without

    return list(wrapping.wrap(text, cells))


def _narrow(part: str) -> Iterator[str]:
    """A paragraph of a docstring, whose lines are longer than a terminal's; of commands a remark
    that has no room stands above its command."""
    if part.startswith(" "):
        for line in part.splitlines():
            yield from _command(line)
        return
    for told in re.split(r"\n(?=\w)", part) if part.startswith("reads ") else [part]:
        hanging = " " * 8 if told is not part else ""
        text = re.sub(r"\n\s*", " ", told)
        yield from wrap(text, _TERMINAL, subsequent_indent=hanging, **_WHOLE)


def _command(line: str) -> Iterator[str]:
    if len(line) <= _TERMINAL:
        yield line
        return
    command, _, remark = line.partition("  #")
    if remark:
        yield f"    #{remark}"
    goes_on = " \\" if command.endswith(" \\") else ""
    words = command.removesuffix(goes_on).rstrip()
    words = re.sub(r"(--[\w-]+) (?=[^-])", "\\1\0", words)  # a flag stays with its value
    pieces = wrap(words, _TERMINAL - 2, subsequent_indent=" " * 8, **_WHOLE)
    yield from (" \\\n".join(pieces) + goes_on).replace("\0", " ").split("\n")


def _indented(text: str, part: str) -> list[str]:
    head = {"reads": "读取  ", "writes": "写入  "}[part]
    first, *rest = lines(text, _TERMINAL - 6)
    return [head + first, *(" " * 6 + line for line in rest)]
