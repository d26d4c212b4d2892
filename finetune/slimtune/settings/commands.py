"""The command that comes next, to paste: it keeps what this run was told, and is not refused.

A setting that was a flag of this run is a flag of the next step too, as it was typed, where the
next script has it. Where finished output of that name is in the way already, it gets another one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from glob import escape
from itertools import count
from pathlib import Path
from typing import Any

from slimtune.artifacts.model_names import automatic_name
from slimtune.config import Config
from slimtune.console import near, to_paste
from slimtune.settings.flags import flags_of, section_fields

_NOTHING: Mapping[str, Any] = {}
# What evaluate_model does instead of writing a comparison.
_NO_OUTPUT = ("evaluation.merge", "evaluation.interactive")

# These find the rows of their model in its record (see data/learned_rows.py).
_FOLLOWS_RECORDS = ("model_pruning", "evaluate_model", "convert_to_gguf")
_RECORDED = ("training.train_data",)


def next_command(
    script: str,
    config: Config,
    given: Mapping[str, Any] = _NOTHING,
    *,
    leave: Collection[str] = (),
    end: tuple[str, ...] = (),
) -> str:
    """The command line of `script` after this run.

    `given` are settings ("section.name") by value, `leave` those of this run that the next has no
    use for, `end` further words. Where finished output is in the way, the next step writes to
    another name, or overwrites it if this run was allowed to.
    """
    flags = {".".join(path): flag for flag, path in flags_of(script).items()}
    unsaid = {*leave, *(_RECORDED if script in _FOLLOWS_RECORDS else ())}
    values = dict(given)
    values |= {
        setting: text
        for setting, text in config.options.flags.items()
        if setting in flags and setting not in given and setting not in unsaid
    }
    named, taken = _OUTPUTS[script]
    output = _value(named, config, values)
    if taken(config, output) and not any(map(values.get, _NO_OUTPUT)):
        if config.options.overwrite:
            end = (*end, "--overwrite")
        else:
            others = (_other(output, number) for number in count(2))
            values[named] = next(one for one in others if not taken(config, one))
    words = ["--config", config.options.config] if config.options.config else []
    for setting, value in values.items():
        words += _words(flags[setting], _as_named(value, config), setting)
    return to_paste(script, *words, *end)


def unless_set(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given` that the settings do not say already."""
    return {
        name: value for name, value in given.items() if str(value) != str(_value(name, config, {}))
    }


def _words(flag: str, value: Any, setting: str) -> Iterator[str]:
    section, _, name = setting.partition(".")
    text = _written(value)
    if value is True and section_fields(section)[name].annotation is bool:
        yield f"--{flag}"
    elif text.startswith("-"):  # else it would be taken for a flag
        yield f"--{flag}={text}"
    else:
        yield from (f"--{flag}", text)


def _as_named(value: Any, config: Config) -> Any:
    """The GGUF in place of the folder that it was unpacked into, alone or in a list."""
    if isinstance(value, list | tuple):
        return [_as_named(one, config) for one in value]
    return config.options.unpacked.get(str(value), value)


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_written, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return near(value) if isinstance(value, Path | str) else str(value)


def _value(setting: str, config: Config, given: Mapping[str, Any]) -> Any:
    section, _, name = setting.partition(".")
    value = getattr(getattr(config, section), name)
    found = given.get(setting, value)
    if (setting, found) == ("gguf.model_name", "auto"):
        return automatic_name(_value("gguf.model_path", config, given), config.gguf.lora_model)[0]
    return Path(found) if isinstance(value, Path) else found


def _other(output: Path | str, number: int) -> Path | str:
    """models/finetuned-2, models/evaluation-2/results.csv, name-2."""
    if isinstance(output, str):
        return f"{output}-{number}"
    folder = output.parent if output.suffix else output
    other = folder.with_name(f"{folder.name}-{number}")
    return other / output.name if output.suffix else other


def _holds(*names: str) -> Callable[[Config, Path], bool]:
    return lambda _, folder: any((folder / name).exists() for name in names)


# script: the setting that names its output, and whether such output is there already. The combined
# run is only ever named to go on with.
_OUTPUTS: dict[str, tuple[str, Callable[[Config, Any], bool]]] = {
    "create_sample_data": ("sample.output_dir", _holds("raw_data.json")),
    "prepare_data": (
        "data.output_name",
        lambda config, name: (config.data.output_dir / f"{name}_run.json").exists(),
    ),
    "train_lora": ("lora.output_dir", _holds("lora_adapter", "full_model")),
    "model_pruning": ("pruning.output_dir", _holds("run.json")),
    "knowledge_distillation": ("distillation.output_dir", _holds("run.json")),
    "train_pruned_distilled": ("pruned_distilled.output_dir", lambda *_: False),
    "evaluate_model": ("evaluation.output", lambda _, file: file.exists()),
    "convert_to_gguf": (
        "gguf.model_name",
        lambda config, name: any(config.gguf.output_dir.glob(f"{escape(name)}-*.gguf")),
    ),
}
