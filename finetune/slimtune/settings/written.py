"""The schema as files: config.yaml with its comments, and config.schema.json for editors.

`python -m slimtune.settings`, run from finetune/, writes both again after a change.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from slimtune.config import Config
from slimtune.settings.flags import fields_alone, fields_of, section_fields

_HEAD = """\
# yaml-language-server: $schema=config.schema.json
# Every setting of SlimTune, in pipeline order. Flags of the scripts override it for one run;
# `--print-config` shows what a script would use. Paths are relative to this file.
"""


def config_yaml(config: Config, *, script: str | None = None) -> str:
    """The settings as YAML with their help; with `script`, only those that the script uses."""
    shown = {(section, name) for section, name, _ in fields_of(script)} if script else None
    blocks = [_HEAD]
    for section in Config.model_fields:
        fields = [
            (name, field)
            for name, field in section_fields(section).items()
            if shown is None or (section, name) in shown
        ]
        if fields:
            blocks.append(_section(section, fields, getattr(config, section)))
    return "\n".join(blocks)


def _section(section: str, fields: list[tuple[str, Any]], values: Any) -> str:
    lines = [f"# {line}" for line in type(values).__doc__.strip().splitlines()]
    lines.append(f"{section}:")
    for name, field in fields:
        lines += [f"  # {line}" for line in field.description.splitlines()]
        lines.append(f"  {name}: {_written(getattr(values, name))}")
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, Path):
        value = value.as_posix()
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
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
