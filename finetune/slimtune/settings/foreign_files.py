"""A settings file of another tool, said in our words: lines to paste.

LLaMA-Factory, Axolotl and mlx-lm write `learning_rate: 1e-4` with no section around it, and who
comes from them gives such a file as --config.
"""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from pydantic import ValidationError

from slimtune.config import Config
from slimtune.settings.flags import flags_of, is_list, section_fields
from slimtune.settings.foreign_flags import instead, our_value, ours
from slimtune.settings.written import written_value
from slimtune.settings.yaml_file import Given, Mistake, SettingPath, scalar

_INDENT = "    "
_WIDTH = 78 - len(_INDENT)  # of a remark: a terminal breaks no line of what is pasted
_ROWS = {"data.input", "training.train_data", "training.val_data", "evaluation.test_data"}
_PREPARED = (
    "`prepare_data.py --input a.json,b.jsonl` makes rows of your files, which training.train_data "
    "names"
)


def in_sections(flat: Mapping[str, Given], script: str) -> Mistake:
    """One mistake for all settings that stand in no section, with the lines that say the same here.

    `flat` are their names and values as they were written.
    """
    found: dict[str, dict[str, Any]] = {}
    remarks: dict[str, list[str]] = {}
    for theirs, given in flat.items():
        if given.value is None:
            continue
        said = _in_our_words(theirs, given.value, script)
        if isinstance(said, str):
            remarks.setdefault(said, []).append(theirs)
        else:
            (section, name), value = said
            found.setdefault(section, {}).setdefault(name, value)
    first = next(iter(flat))
    count = f"{first} stands" if len(flat) == 1 else f"{len(flat)} settings stand"
    return Mistake(
        f"{flat[first].where}: {count} in no section",
        "settings stand in sections here, some under names of their own",
        "\n".join(["write it so, here or in another file for --config:", *_lines(found, remarks)]),
    )


def _in_our_words(theirs: str, value: Any, script: str) -> tuple[SettingPath, Any] | str:
    """Our setting and its value, or what is said in its place."""
    meant = ours(theirs)
    if meant and meant[0].startswith("--"):
        return f"{meant[0]} behind the command"
    path = setting_meant(theirs, script)
    if path is None:
        return instead(theirs, str) or "there is no such setting here"
    setting = ".".join(path)
    if setting in _ROWS:
        return _PREPARED
    own = _valued(theirs, value, path)
    try:
        Config.model_validate({path[0]: {path[1]: own}})
    except ValidationError:
        return f"{str(value)[:60]} is no {setting}"
    return path, own


def setting_meant(theirs: str, script: str, section: str = "") -> SettingPath | None:
    """The setting of ours that a name of another tool means, or that bears this name itself: one of
    `section` before one that the script shows, before any other."""
    flags = flags_of(script)
    dashed = theirs.lower().replace("_", "-")
    meant = [(one.partition(".")[0], one.partition(".")[2]) for one in ours(theirs)]
    if not meant:
        own = [flags[dashed]] if dashed in flags else []
        named = dashed.replace("-", "_")
        meant = own + [(one, named) for one in Config.model_fields if named in section_fields(one)]
    shown = set(flags.values())
    known = [path for path in meant if path[0] in Config.model_fields]
    return min(known, key=lambda path: (path[0] != section, path not in shown), default=None)


def _valued(theirs: str, value: Any, path: SettingPath) -> Any:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    own = our_value(theirs, text)
    if own is not None:
        value = scalar(own)
    if is_list(section_fields(path[0])[path[1]]) and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _lines(found: Mapping[str, Mapping[str, Any]], remarks: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for section in filter(found.__contains__, Config.model_fields):
        lines.append(f"{section}:")
        lines += [f"  {name}: {written_value(value)}" for name, value in found[section].items()]
    for said, names in remarks.items():
        text = f"{', '.join(names)}: {said}"
        told = wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        lines += [f"# {one}" for one in told]
    return [f"{_INDENT}{line}" for line in lines]
