"""The Hugging Face Hub: a model's files, or why they cannot be had."""

import errno
import logging
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from slimtune.errors import InputError, ResourceError, SlimTuneError

_log = logging.getLogger(__name__)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_UNWANTED = ["*/*", "consolidated*"]


def download(name: str, patterns: list[str]) -> Path:
    """The files of a Hub id that match `patterns`, in the Hub's own cache.

    Raises what `folders.local_folder` says of a Hub id.
    """
    _log.info("%s: looking on %s", name, constants.ENDPOINT)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_UNWANTED))
    except (OSError, HFValidationError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise  # told as any refusal of the system is
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
    folder = f"models/{name.partition('/')[2]}"
    return ResourceError(
        f"{name}: cannot be downloaded from {constants.ENDPOINT}",
        _out_of_reach(error),
        "export HF_ENDPOINT=ADDRESS_OF_A_MIRROR and run it again; or take it from ModelScope: "
        f"pip install modelscope && modelscope download --model {name} --local_dir {folder}, and "
        f"give {folder} in place of the name; or copy such a folder from another machine",
    )


def _out_of_reach(error: BaseException) -> str:
    """Why the Hub could not be asked: offline by order, its status, or no connection."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the model is not in the Hub's cache on this machine"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return f"it answered with HTTP status {cause.response.status_code}"
        cause = cause.__cause__ or cause.__context__
    return "no connection: the address does not answer from here"
