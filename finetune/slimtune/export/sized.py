"""Files of one size from several models, each with the types that lose least for it.

The combined run ends with them: what was pruned has fewer weights and more bits for each, the
unpruned fine-tune the other way round, and a comparison tells which answers better.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from slimtune.artifacts import ancestors, finish_files, run_of
from slimtune.config import Config
from slimtune.console import near
from slimtune.errors import SettingsError
from slimtune.export import allocation, convert, preflight
from slimtune.export.plan import open_source
from slimtune.models.folders import local_folder

_log = logging.getLogger("slimtune")

FINE_TUNED = "fine-tuned"  # what the unpruned one's file is called in place of "final"


def require_room(config: Config, base: str, parameters: int) -> None:
    """Raises SettingsError, before any work, for a size that `parameters` cut out of `base` can
    never have, and what a conversion raises for a model or machine that it cannot be done with."""
    preflight.require_proof(config.gguf)
    plan = preflight.preflight(local_folder(base), "F16")
    allocation.require_possible_when_cut(plan, config.gguf, "final", parameters)


def write_sized(config: Config, base: str, final: Path, file: Path) -> None:
    """`file` from the folder `final`, and a file of the same bytes from the unpruned fine-tune of
    `base`, where gguf.model_path is one and can be so small.

    Raises SettingsError for a size that `final` cannot have, and what a conversion raises.
    """
    plan = preflight.preflight(final, "F16")
    most = allocation.bytes_allowed(plan, config.gguf, file.stem)
    rival, beside = _unpruned(config, base), _beside(file)
    if rival:
        given = {"model_path": str(rival), "target_size": most, "target_bits": None}
        try:
            _convert(_named(config, beside, **given), rival, beside)
        except SettingsError as error:
            _log.warning("%s: left out. %s; %s", near(beside), error.what, error.why)
    _convert(_named(config, file, model_path=str(final)), final, file)


def written(files: Sequence[Path]) -> list[Path]:
    """`files` and the unpruned fine-tune's beside each, as far as they are finished."""
    return [one for file in files for one in (file, _beside(file)) if run_of(one)]


def _beside(file: Path) -> Path:
    return file.with_name(file.name.replace("final", FINE_TUNED, 1))


def _unpruned(config: Config, base: str) -> Path | None:
    """gguf.model_path, where it was made from `base`."""
    model = Path(config.gguf.model_path)
    runs = ancestors(model)
    made_from = {os.path.realpath(one["path"]) for run in runs for one in run["inputs"]}
    return model if os.path.realpath(base) in made_from else None


def _convert(config: Config, model: Path, file: Path) -> None:
    """One proven file; one that is there and was made from this very model stays as it is."""
    finish_files(convert.manifest_of(file), config, convert.written_with(file, config))
    made, known = run_of(model), run_of(file)
    same = made and known and known["inputs"][0]["run_id"] == made["run_id"]
    if same and not config.options.overwrite:
        return
    with open_source(model) as source:
        plans = dict(zip([file], convert.plans_for(source, config), strict=True))
        preflight.require_disk(plans)
        convert.convert_and_prove(source, plans, config)


def _named(config: Config, file: Path, **given: object) -> Config:
    """The settings of a conversion to `file`, whatever else they are for; what is measured for it
    lies beside it under its name, for another size it is measured again."""
    given |= {"lora_model": None, "lora_as": "merged", "model_name": file.stem}
    return config.model_copy(update={"gguf": config.gguf.model_copy(update=given)})
