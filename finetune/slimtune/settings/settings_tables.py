"""The reference of all settings in OPTIMIZATION_GUIDE, in both languages, from the schema."""

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from slimtune.config import Config
from slimtune.settings.flags import section_fields
from slimtune.settings.languages import in_one_line, of_section, of_setting
from slimtune.settings.written import written_value

GUIDES = {"en": "OPTIMIZATION_GUIDE.md", "zh": "OPTIMIZATION_GUIDE.zh-CN.md"}
START = "<!-- settings: written by `python -m slimtune.settings`, from the schema -->"
END = "<!-- end of settings -->"
_HEADERS = {
    "en": ("setting", "default", "what it does"),
    "zh": ("设置", "默认值", "作用"),
}
# What Markdown or a table would take for its own.
_SIGNS = {"&": "&amp;", "<": "&lt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`"}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))


def with_reference(guide: Path, language: str) -> str:
    """The text of a guide with what stands between its two marks written anew."""
    before, _, rest = guide.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{reference(language)}\n{END}{after}"


def reference(language: str) -> str:
    """A heading, a sentence and a table for each section."""
    return "\n".join(_section(section, language) for section in Config.model_fields)


def _section(section: str, language: str) -> str:
    about = in_one_line(of_section(section, language), language)
    rows = []
    for name, field in section_fields(section).items():
        help = of_setting(section, name, field, language)
        rows.append(_row((_name(name, field), _default(field), _told(help, language))))
    table = [_row(_HEADERS[language]), "|---|---|---|", *rows]
    return "\n".join([f"### `{section}`", "", about, "", *table, ""])


def _row(cells: tuple[str, str, str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(name: str, field: FieldInfo) -> str:
    """The setting, and its flag where that is not its name with dashes."""
    flag = (field.json_schema_extra or {}).get("flag")
    return f"`{name}`" + (f"<br>`--{flag}`" if flag else "")


def _default(field: FieldInfo) -> str:
    return f"`{written_value(field.default)}`"


def _told(help: str, language: str) -> str:
    """A help as a cell: Markdown's own signs made inert, a line for each named choice."""
    text = _SIGN.sub(lambda sign: _SIGNS[sign[0]], help)
    return in_one_line(re.sub(r"([;；])\n", r"\1<br>", text), language)
