"""How long a text a model was made for, and settings that ask for more.

Beyond its max_position_embeddings a model has seen no position: it learns and answers noise there,
and neither transformers nor llama.cpp says so. A length that stands at its default was nobody's
choice, so it is lowered with a word; one that somebody wrote down is refused, for to train on other
rows than asked for, in silence or nearly so, would be as wrong.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimtune.config import Config
from slimtune.config.fields import ELSEWHERE
from slimtune.console import near
from slimtune.errors import SettingsError
from slimtune.models.folders import local_folder
from slimtune.models.json_files import read_model_json
from slimtune.settings.flags import named, section_fields

_log = logging.getLogger(__name__)

_SCALED = ("linear", "dynamic")  # their config.json may name the positions before scaling


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The most tokens that the model of a config.json follows; None where it names no number.

    Scaled positions count: original_max_position_embeddings, or with linear and dynamic scaling
    max_position_embeddings, times the factor, where that is more.
    """
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(factor, int | float):
        return positions
    original = scaling.get("original_max_position_embeddings")
    scaled = original or (positions if kind in _SCALED else 0)
    return max(positions, int(scaled * factor))


def within_positions(config: Config, *models: str | Path) -> Config:
    """The settings with a training.max_length that each of the models can follow.

    Raises SettingsError for one of the user's own that is too long.
    """
    asked = length = config.training.max_length
    for model in models:
        if str(model).startswith(ELSEWHERE):  # its server shortens, or says that it does not
            continue
        here = Path(model)
        if here.is_file():
            about, place = _about_file(here), here
        else:
            place = here if (here / "config.json").is_file() else local_folder(model)
            about = read_model_json(place / "config.json")
        length = min(length, followed("training.max_length", asked, about, place))
    if length == asked:
        return config
    training = config.training.model_copy(update={"max_length": length})
    return config.model_copy(update={"training": training})


def _about_file(file: Path) -> dict[str, Any]:
    """What a GGUF says of the text that it follows, in the words of a config.json."""
    from slimtune.models.gguf_header import read_gguf  # its package only where there is such a file

    header = read_gguf(file)
    most = header.get(f"{header.architecture}.context_length", int)
    return {} if most is None else {"max_position_embeddings": most}


def longest_here(config: Config, model: str) -> int:
    """training.max_length, less where `model` is a folder here that follows less."""
    here = (Path(model) / "config.json").is_file()
    return (within_positions(config, model) if here else config).training.max_length


def followed(setting: str, asked: int, about: Mapping[str, Any], folder: Path) -> int:
    """`asked` tokens, the value of `setting`, or as many as the model of `folder` follows.

    `about` is its config.json. Raises SettingsError for more than that which is no default.
    """
    most = positions_of(about)
    if most is None or asked <= most:
        return asked
    section, name = setting.split(".")
    if asked != section_fields(section)[name].default:
        raise SettingsError(
            f"{setting}: {asked}, and {near(folder)} follows {most} tokens",
            "it says so itself (max_position_embeddings): beyond it knows no position",
            f"set {named(setting)} to {most}, or use a model with a longer context",
        )
    _log.warning(
        "caution: %s is %d here in place of %d: more %s cannot follow (max_position_embeddings)",
        *(named(setting), most, asked, near(folder)),
    )
    return most
