"""Settings that name a GGUF where a model folder is needed, with the folder it is unpacked into."""

from dataclasses import replace
from pathlib import Path

from slimtune.config import Config, Distillation
from slimtune.errors import SettingsError
from slimtune.models.gguf_header import is_gguf
from slimtune.models.ollama_store import blob_of, is_ollama, plain_name
from slimtune.settings import model_references
from slimtune.unpacking.unpack import unpacked

_TEACHER = ("distillation", "teacher_model")


def with_folders(config: Config, script: str) -> Config | None:
    """The settings of `script` with a folder for each GGUF file and each `ollama:NAME`.

    A teacher that is only asked stays where it is. `options.unpacked` tells what stood there: the
    next command is told in the user's words. None where a dry run ends with what would be
    unpacked. Raises what `unpacked` raises.
    """
    folders: dict[str, dict[str, str]] = {}
    named: dict[str, str] = {}
    for (section, name), reference in model_references(config, script).items():
        if (section, name) == _TEACHER and _only_asked(config.distillation):
            continue
        _require_weights(f"{section}.{name}", reference)
        folder = _folder(reference, config)
        if folder is None:
            return None
        if folder != reference:
            folders.setdefault(section, {})[name] = folder
            named[folder] = reference
    sections = {
        section: getattr(config, section).model_copy(update=values)
        for section, values in folders.items()
    }
    changed = config.model_copy(update=sections)
    changed._options = replace(config.options, unpacked=named)
    return changed


def _only_asked(distillation: Distillation) -> bool:
    """A teacher beside the student, or in other numbers than its file's, is unpacked as others."""
    return distillation.mode != "online" and distillation.teacher_quantization == "none"


def _require_weights(setting: str, reference: str) -> None:
    if reference.startswith(("http://", "https://")):
        raise SettingsError(
            f"{setting}: {reference} is the address of a server",
            "a server answers, and lends nobody its weights, which are needed here",
            "give a folder, a Hub id or a GGUF file; a server is compared with --models, and "
            "teaches with --mode sequence and --teacher-quantization none",
        )


def _folder(reference: str, config: Config) -> str | None:
    if is_ollama(reference):
        file, name = blob_of(reference), plain_name(reference)
    elif is_gguf(reference):
        file, name = Path(reference), Path(reference).name.removesuffix(".gguf")
    else:
        return reference
    folder = unpacked(file, name, config)
    return None if folder is None else str(folder)
