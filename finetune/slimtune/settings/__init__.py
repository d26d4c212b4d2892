"""Settings from config.yaml and the command line, checked against the schema, all mistakes at once.

Order: defaults < config.yaml < flags. File and flags pass the same YAML 1.2 reader. Paths in the
file are relative to the file's folder, paths in flags to the working directory, defaults to the
project.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from slimtune.config import SCRIPTS, Config, Options
from slimtune.config.fields import ELSEWHERE
from slimtune.config.inputs import join_adapter, join_inputs, split_adapter, split_inputs
from slimtune.errors import SettingsError
from slimtune.settings.flags import (
    fields_alone,
    fields_of,
    flags_of,
    is_list,
    read_flags,
    section_fields,
    typed_settings,
)
from slimtune.settings.foreign_files import in_sections, setting_meant
from slimtune.settings.foreign_flags import instead
from slimtune.settings.refused_values import expected
from slimtune.settings.yaml_file import Given, Mistake, SettingPath, WrittenSettings, read_yaml

PROJECT = Path(__file__).resolve().parents[3]
_LONGEST_SHOWN = 200  # characters of a value in an error
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


class SettingsErrors(SettingsError):
    """Every mistake of one reading, so that the user mends them in one go."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__(mistakes[0].what, mistakes[0].why, mistakes[0].cure)
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(str(SettingsError(m.what, m.why, m.cure)) for m in self.mistakes)


def read_settings(script: str, doc: str, arguments: Sequence[str]) -> tuple[Config, bool]:
    """The settings of a run of `script`, and whether they are only to be printed.

    Raises SettingsError naming every unknown name, malformed value and contradiction.
    """
    options, flags = read_flags(script, doc, arguments)
    file = _config_file(options.config)
    written = WrittenSettings()
    if file:
        written = read_yaml(file, fields_alone(), Config.model_fields)
    flat = [in_sections(written.flat, script)] if written.flat else []
    mistakes = [*written.mistakes, *flat, *_unknown_names(written, script), *flags.mistakes]
    given = _merge(written, flags)
    config, wrong_values = _validate(given, script)
    if mistakes or wrong_values:
        raise SettingsErrors([*mistakes, *wrong_values])
    config = _resolve(config, given, file.resolve().parent if file else PROJECT)
    config._options = Options(
        overwrite=options.overwrite,
        resume=options.resume,
        dry_run=options.dry_run,
        debug=options.debug,
        config=options.config,
        flags=typed_settings(options),
    )
    return config, options.print_config


def _config_file(named: str | None) -> Path | None:
    file = Path(named) if named else PROJECT / "config.yaml"
    if file.is_file():
        return file
    if named:
        raise SettingsError(
            f"{named}: no such settings file",
            f"looked for {file.resolve()}",
            "name an existing file, or leave --config out to use the project's config.yaml",
        )
    return None


def _unknown_names(written: WrittenSettings, script: str) -> list[Mistake]:
    mistakes = []
    for section, fields in written.sections.items():
        if section not in Config.model_fields:
            near = _nearly(section, Config.model_fields)
            mistakes.append(
                Mistake(f"{written.lines[section]}: {section}", "there is no such section", near)
            )
            continue
        for name, given in fields.items():
            if name not in section_fields(section):
                what = f"{given.where}: {section}.{name}"
                cure = _instead(name, section, script)
                mistakes.append(Mistake(what, "there is no such setting", cure))
    return mistakes


def _instead(name: str, section: str, script: str) -> str:
    """Another tool's name, one of another section, what is done in its place, or a near one."""
    meant = setting_meant(name, script, section)
    if meant:
        return f"it is called `{'.'.join(meant)}` here"
    return instead(name, str) or _nearly(name, section_fields(section))


def _nearly(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(known)}"


def _merge(*sources: WrittenSettings) -> dict[SettingPath, Given]:
    return {
        (section, name): given
        for source in sources
        for section, fields in source.sections.items()
        if section in Config.model_fields
        for name, given in fields.items()
        if name in section_fields(section)
    }


def _validate(given: dict[SettingPath, Given], script: str) -> tuple[Config | None, list[Mistake]]:
    values: dict[str, dict[str, Any]] = {}
    for (section, name), one in given.items():
        values.setdefault(section, {})[name] = one.value
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        return None, [_mistake(one, given, script) for one in _each_once(error.errors())]


def _each_once(errors: Sequence[Any]) -> list[Any]:
    """One error for a value that fits none of a field's types, which pydantic tells one by one."""
    found: dict[Any, Any] = {}
    for one in errors:
        listed = any(isinstance(part, int) for part in one["loc"])
        place = one["loc"] if listed else one["loc"][:2]
        found.setdefault(place, {"loc": one["loc"], "told": []})["told"].append(one)
    return list(found.values())


def _mistake(error: Any, given: dict[SettingPath, Given], script: str) -> Mistake:
    section, *rest = error["loc"]
    why = expected(error["told"])
    if not rest:
        return Mistake(f"{section}: settings that contradict each other", why, "change one of them")
    name, one = str(rest[0]), given[section, str(rest[0])]
    flag = next((f for f, path in flags_of(script).items() if path == (section, name)), None)
    what = f"{one.where}: {_as_written(one.value)} is no {section}.{name}"
    field = section_fields(section)[name]
    example = _as_written(field.examples[0] if field.examples else field.default)
    place = f"--{flag} {example}" if one.where.startswith("--") else f"{name}: {example}"
    return Mistake(what, why, f"for example {place}")


def _as_written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return _short(",".join(map(str, value))) or "[]"
    return _short(str(value)) or '""'


def _short(text: str) -> str:
    """As much of a value as tells which it is."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _resolve(config: Config, given: dict[SettingPath, Given], default_folder: Path) -> Config:
    """All paths absolute: from the folder of the source that gave them."""
    sections = {}
    for section in Config.model_fields:
        values = {}
        for name, field in section_fields(section).items():
            value = getattr(getattr(config, section), name)
            one = given.get((section, name))
            values[name] = _absolute(value, field, one.folder if one else default_folder)
        sections[section] = type(getattr(config, section)).model_construct(**values)
    return Config.model_construct(**sections)


_WRITTEN = ("_dir", "output")  # how the names of settings end that say where to write


def paths_read(config: Config, script: str) -> list[Path]:
    """The files and folders that a script's settings name as its inputs."""
    found = [Path(one) for one in model_references(config, script).values()]
    for section, name, field in fields_of(script):
        value = getattr(getattr(config, section), name)
        if "inputs" in field.metadata:
            found += [one.path for one in split_inputs(value)]
        elif isinstance(value, Path) and not name.endswith(_WRITTEN):
            found.append(value)
    return found


def model_references(config: Config, script: str) -> dict[SettingPath, str]:
    """The settings that a script shows and that name one model: a folder, file, or name."""
    shown = SCRIPTS[script]
    return {
        (section, name): getattr(getattr(config, section), name)
        for section in Config.model_fields
        for name, field in section_fields(section).items()
        if "model" in field.metadata and (section in shown or f"{section}.{name}" in shown)
    }


def _absolute(value: Any, field: FieldInfo, folder: Path) -> Any:
    if "inputs" in field.metadata:
        return join_inputs(split_inputs(value, folder))
    if isinstance(value, Path):
        return Path(folder / value.expanduser())
    if "model" in field.metadata:
        return _model(value, folder)
    if is_list(field) and "model" in getattr(field.annotation.__args__[0], "__metadata__", ()):
        return [_with_adapter(one, folder) for one in value]
    return value


def _with_adapter(reference: str, folder: Path) -> str:
    """A model, or a base and the file of its adapter."""
    base, adapter = split_adapter(reference, folder)
    if adapter is None:
        return _model(base, folder)
    path = folder / Path(adapter).expanduser()
    return join_adapter(_model(base, folder), str(path.resolve()))


def _model(reference: str, folder: Path) -> str:
    """An existing folder or file, or what can be no Hub id, is a path; the rest is a Hub id, or
    lies elsewhere. `auto` is chosen later; a folder of that name is ./auto."""
    if reference == "auto" or reference.startswith(ELSEWHERE):
        return reference
    path = folder / Path(reference).expanduser()
    known_roots = ("models/", "data/", "finetune/", "./", "../")
    local = reference.startswith(known_roots) or reference.endswith(".gguf")
    if path.exists() or local or not _HUB_ID.match(reference):
        return str(path.resolve())
    return reference
