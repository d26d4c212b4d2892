"""What keeps a run from leaving its base in the files: said by name, with the cure."""

from collections.abc import Mapping
from typing import Any

from slimtune.config import Config, Lora
from slimtune.console import processes
from slimtune.errors import SettingsError
from slimtune.models.family import FAMILIES, families_in_words
from slimtune.settings.flags import named

SETTING = "training.stream_base"


def require_possible(config: Config) -> None:
    """SettingsError, before anything is loaded, for settings that streaming is asked with and does
    not go with."""
    asked = config.training.stream_base is True
    if asked and (why := _hindrance(config)):
        what, reason, cure = why
        raise SettingsError(f"{SETTING}: true {what}", reason, cure)


def possible(config: Config, shapes: Mapping[str, Any]) -> bool:
    """Whether an adapter on the model of `shapes` (a config.json) can be trained so.

    SettingsError where it is asked for and the family is none that is known here.
    """
    known = shapes.get("model_type") in FAMILIES
    if not known and config.training.stream_base is True:
        raise SettingsError(
            f"{SETTING}: true on a {shapes.get('model_type')} model",
            "only families known here are computed layer by layer",
            f"set {named(SETTING)} to false, or choose a base of the {families_in_words('or')} "
            "family",
        )
    return known and _hindrance(config) is None


def _hindrance(config: Config) -> tuple[str, str, str] | None:
    """What, why and the cure, where something in the settings needs the whole base."""
    if config.lora.method == "full":
        return "with method full", "all weights learn, and stay in memory", "use --method lora"
    if config.model.quantization != "none":
        return (
            "on a quantised base",
            "layers are read as they are in the files, and rounding each anew would cost more than "
            "it computes",
            f"leave out --use-quantization, or set {named(SETTING)} to false",
        )
    if processes() > 1:
        return (
            "with more than one process",
            "each would read the model for itself from the same disk",
            "start it without accelerate launch, or share the weights out with "
            "finetune/launch/fsdp_cpu.yaml",
        )
    return _of_adapter(config.lora)


def _of_adapter(lora: Lora) -> tuple[str, str, str] | None:
    if lora.modules_to_save:
        return (
            f"with lora.modules_to_save {', '.join(lora.modules_to_save)}",
            "what is trained whole stays in memory, and these are the largest parts of a model",
            f"leave them out, or set {named(SETTING)} to false",
        )
    if lora.dora:
        return (
            "with lora.dora",
            "DoRA begins with the length of every weight, and none is there yet",
            f"leave out --dora, or set {named(SETTING)} to false",
        )
    if lora.initialisation != "default":
        return (
            f"with lora.initialisation {lora.initialisation}",
            "it takes its start out of the base's weights, and none is there yet",
            f"use --lora-init default, or set {named(SETTING)} to false",
        )
    return None
