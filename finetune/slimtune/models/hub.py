"""From what the user wrote to a model folder on this disk: it is local, or comes from the Hub."""

import logging
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from slimtune.console import InputError, ResourceError, SlimTuneError
from slimtune.models.folders import read_json, weight_files

_log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights as safetensors and what lies beside them; "consolidated" files are the same weights again.
_WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "LICENSE*", "USE_POLICY*"]
_UNWANTED = ["*/*", "consolidated*"]


def resolve(reference: str | Path) -> Path:
    """The folder of a model with config.json and safetensors weights; downloads a Hub id once.

    Raises InputError for a folder that is missing, unfinished, without weights, or not a model, and
    for a Hub id that does not exist or is not open to this user; ResourceError where the Hub cannot
    be reached.
    """
    folder = Path(reference).expanduser()
    if not folder.exists() and is_hub_id(str(reference)):
        folder = download(str(reference), _WANTED)
    _require_model(folder)
    return folder


def is_hub_id(reference: str) -> bool:
    """Whether it is an owner/name of the Hub: models/pruned is not where there is a models/."""
    return bool(_HUB_ID.fullmatch(reference)) and not Path(reference).parent.is_dir()


def _require_model(folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if not folder.exists() and partial.is_dir():
        raise InputError(
            f"{folder}: the stage that writes this model has not finished",
            f"only {partial.name} is there",
            "wait for it, or run that script again",
        )
    if folder.suffix == ".gguf" and folder.is_file():
        raise InputError(
            f"{folder}: a GGUF file where a model folder is needed",
            "GGUF is the last step: only evaluate_model.py reads it",
            "give the folder it was converted from",
        )
    weight_files(folder)
    read_json(folder / "config.json")


def download(name: str, patterns: list[str]) -> Path:
    """The files of a Hub id that match `patterns`, in the Hub's own cache; errors as `resolve`."""
    _log.info("%s: looking on %s", name, constants.ENDPOINT)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_UNWANTED))
    except (OSError, HFValidationError, RuntimeError) as error:
        raise _explain(name, error) from error


def _explain(name: str, error: Exception) -> SlimTuneError:
    """The Hub's answer in three lines; what is no refusal is taken for a connection that failed."""
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{name}: the Hub does not give this model to everyone",
            "its owner asks you to accept a licence and to show a token",
            f"accept it on {constants.ENDPOINT}/{name}, then run: hf auth login",
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return InputError(
            f"{name}: neither a folder here nor a model on the Hub",
            "no such name, or it is private and needs a token",
            "check the spelling, give a local folder, or `hf auth login`",
        )
    return ResourceError(
        f"{name}: cannot be downloaded from {constants.ENDPOINT}",
        str(error).splitlines()[0],
        "give a local folder, export HF_ENDPOINT=<a mirror>, or download on another machine",
    )
