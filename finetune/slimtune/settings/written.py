"""The schema as files: config.yaml with its comments, and config.schema.json for editors.

`python -m slimtune.settings`, run from finetune/, writes both again after a change.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from slimtune.config import Config
from slimtune.settings.flags import fields_alone, fields_of, section_fields
from slimtune.settings.languages import HEADS, commented, of_section, of_setting

_EDITORS = "# yaml-language-server: $schema=config.schema.json"


def config_yaml(config: Config, *, script: str | None = None) -> str:
    """The settings as YAML with their help; with `script`, only those that the script uses.

    The comments are in the language of evaluation.language.
    """
    language = config.evaluation.language
    shown = {(section, name) for section, name, _ in fields_of(script)} if script else None
    head = [f"# {line}\n" for line in commented(HEADS[language], language)]
    blocks = ["".join([f"{_EDITORS}\n", *head])]
    for section in Config.model_fields:
        fields = [
            (name, field)
            for name, field in section_fields(section).items()
            if shown is None or (section, name) in shown
        ]
        if fields:
            blocks.append(_section(section, fields, getattr(config, section), language))
    return "\n".join(blocks)


def _section(section: str, fields: list[tuple[str, Any]], values: Any, language: str) -> str:
    lines = [f"# {line}" for line in commented(of_section(section, language), language)]
    lines.append(f"{section}:")
    for name, field in fields:
        help = of_setting(section, name, field, language)
        lines += [f"  # {line}" for line in commented(help, language)]
        lines.append(f"  {name}: {written_value(getattr(values, name))}")
    return "\n".join(lines) + "\n"


def written_value(value: Any) -> str:
    """A value as config.yaml has it."""
    if isinstance(value, Path):
        value = value.as_posix()
    if isinstance(value, list):
        return f"[{', '.join(map(written_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    text = yaml.safe_dump(value, allow_unicode=True, width=1000).strip()
    return text.removesuffix("...").strip()


def schema_json() -> str:
    """config.schema.json: the JSON Schema of config.yaml, its sections of one word included."""
    schema = Config.model_json_schema()
    for section, name in fields_alone().items():
        about = schema["properties"][section]
        of_section = about.pop("$ref")
        field = f"{of_section}/properties/{name}"
        about["anyOf"] = [{"$ref": of_section}, {"$ref": field}]
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
