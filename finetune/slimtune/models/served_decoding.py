"""One decoding in the words of whoever serves a model: what they do where a client says nothing.

generation_config.json is for transformers' generate() and for vLLM, `general.sampling.*` in a GGUF
for llama-server, `PARAMETER` in a Modelfile for Ollama. All are made from the settings group
`generation`, which evaluation measures with; what a base brings of its own is said, and taken over
only where `generation: base` asks for it.
"""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slimtune.artifacts.files import write_json
from slimtune.config import Config, GenerationSection
from slimtune.console import near
from slimtune.errors import InputError, SettingsError
from slimtune.models.folders import local_folder
from slimtune.models.json_files import read_model_json
from slimtune.models.positions import within_positions
from slimtune.settings.flags import named

_log = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_KEPT = (*_IDS, "max_length", "transformers_version")
# A setting -> its name in generation_config.json, and what transformers takes where a file that
# samples leaves it out.
_THEIRS = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 50),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repeat_penalty": ("repetition_penalty", 1.0),
}
_IN_GGUF = {"temperature": "temp", "repeat_penalty": "penalty_repeat"}


def settled(config: Config, model: str | Path, *others: str | Path) -> Config:
    """The settings as the model that a stage starts from lets them be: max_length and decoding.

    `others` are asked as well how long a text they follow. Raises what `within_positions` and
    `with_decoding_of` raise.
    """
    config = within_positions(config, model, *others)
    here = Path(model)
    folder = here if (here / "config.json").is_file() else local_folder(model)
    return with_decoding_of(config, folder)


def with_decoding_of(config: Config, folder: Path | None) -> Config:
    """The settings with a base's own decoding under `generation: base`; else it is said what it is.

    `folder` is the base's, None where a run has none. Raises SettingsError for `base` without one,
    InputError where its generation_config.json says what nobody can do.
    """
    ours, takes = config.generation, config.generation.source == "base"
    if folder is None:
        if takes:
            raise SettingsError(
                "generation: base, and there is no base model here",
                f"{near(config.model.base_model)} is no model folder",
                "name one with --base-model, or write temperature and the like yourself",
            )
        return config
    own = own_decoding(folder)
    if takes:
        _say(f"generation: base: {near(folder)} answers by {own.words}")
        taken = {name: getattr(own, name) for name in _THEIRS}
        return config.model_copy(update={"generation": ours.model_copy(update=taken)})
    if own.words not in (ours.words, GenerationSection().words):
        _say(
            f"{near(folder)}: its {GENERATION_CONFIG} asks for {own.words}; it is not taken over, "
            f"answers are chosen by {ours.words}. {named('generation.source')} base takes it over"
        )
    return config


@cache
def _say(words: str) -> None:
    """Once in a run, whichever stages look at the same base."""
    _log.info("%s", words)


def own_decoding(folder: Path) -> GenerationSection:
    """What a model folder's generation_config.json asks for; greedy where it says nothing.

    A file that names a temperature and no do_sample means to sample, as llama.cpp and vLLM read it.
    """
    told = read_model_json(folder / GENERATION_CONFIG, optional=True)
    samples = told.get("do_sample")
    samples = bool(told.get("temperature")) if samples is None else samples
    found = {ours: told.get(theirs) for ours, (theirs, _) in _THEIRS.items()}
    return _as_settings(found, samples, folder / GENERATION_CONFIG)


def own_decoding_of_gguf(file: Path, metadata: Mapping[str, Any]) -> GenerationSection | None:
    """What a GGUF that others made says of sampling; None where it says nothing."""
    names = dict.fromkeys(_THEIRS) | _IN_GGUF
    told = {ours: metadata.get(f"general.sampling.{name or ours}") for ours, name in names.items()}
    for name, value in told.items():  # 0.7 in float32 is 0.699999988
        told[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    if all(value is None for value in told.values()):
        return None
    return _as_settings(told, True, file)


def _as_settings(told: dict[str, Any], samples: bool, file: Path) -> GenerationSection:
    """The settings that say the same; InputError where a value is none."""
    found = {name: _THEIRS[name][1] if told[name] is None else told[name] for name in _THEIRS}
    if not samples or found["temperature"] == 0:
        found = {"repeat_penalty": found["repeat_penalty"]}
    try:
        return GenerationSection(**found)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(
            f"{file}: its {wrong['loc'][0]} is {str(wrong['input'])[:60]!r}",
            wrong["msg"][0].lower() + wrong["msg"][1:],
            "take the file again from the original model, or correct that value",
        ) from error


def write_generation_config(
    folder: Path, generation: GenerationSection, source: Path | None = None
) -> None:
    """generation_config.json of a model folder; token ids stay those of the folder, or `source`.

    Greedy is do_sample false and no temperature: beside a temperature of 0 transformers refuses to
    save a model again (GenerationConfig is invalid), and 4.x every one.
    """
    here = source or folder
    told = read_model_json(here / GENERATION_CONFIG, optional=True)
    if not told:
        about = read_model_json(here / "config.json", optional=True)
        told = {name: about[name] for name in _IDS if about.get(name) is not None}
    written: dict[str, Any] = {name: told[name] for name in _KEPT if name in told}
    written["do_sample"] = not generation.greedy
    if not generation.greedy:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            written[name] = getattr(generation, name)
    if generation.repeat_penalty != 1:
        written["repetition_penalty"] = generation.repeat_penalty
    if generation.max_new_tokens != "auto":
        written.pop("max_length", None)  # transformers warns of both at every answer
        written["max_new_tokens"] = generation.max_new_tokens
    write_json(folder / GENERATION_CONFIG, written)


def gguf_sampling(generation: GenerationSection, context: int) -> dict[str, int | float]:
    """The values of `general.sampling.*` by name, all of them: llama-server's own are others.

    `temp` 0 is greedy there, whatever the rest says. The penalty looks back on all `context` tokens
    of the model, as ours does: -1, which means that on llama.cpp's command line, turns it off when
    it comes from a file (b11549).
    """
    found = {
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "min_p": generation.min_p,
        "temp": generation.temperature,
        "penalty_repeat": generation.repeat_penalty,
    }
    if generation.repeat_penalty != 1:
        found["penalty_last_n"] = context
    return found


def ollama_parameters(generation: GenerationSection, context: int) -> dict[str, int | float]:
    """The `PARAMETER` lines of a Modelfile by name; seed and length only where they were chosen."""
    found = {
        "temperature": generation.temperature,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "min_p": generation.min_p,
        "repeat_penalty": generation.repeat_penalty,
    }
    if generation.repeat_penalty != 1:
        found["repeat_last_n"] = context
    if generation.seed is not None:
        found["seed"] = generation.seed
    if generation.max_new_tokens != "auto":
        found["num_predict"] = generation.max_new_tokens
    return found
