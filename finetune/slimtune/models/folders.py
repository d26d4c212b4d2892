"""Model folders: found on this disk or fetched from the Hub, their weight files, their identity.

What a user wrote becomes a folder, a folder without weights an error that says what is missing, and
two models are told apart without reading all of them.
"""

import hashlib
import logging
import os
import re
from functools import cache
from pathlib import Path

import numpy as np

from slimtune.artifacts import run_of
from slimtune.artifacts.files import inside, require_fetched, sha256
from slimtune.config.fields import ELSEWHERE
from slimtune.console import quoted
from slimtune.errors import InputError
from slimtune.models import json_files
from slimtune.models.json_files import read_model_json

_log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights as safetensors and what lies beside them, the card with its licence too; "consolidated"
# files are the same weights again.
_WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt"]
_WANTED += ["LICENSE*", "USE_POLICY*", "README.md"]


def local_folder(reference: str | Path) -> Path:
    """The folder of a model with config.json and safetensors weights; downloads a Hub id once.

    Raises InputError for a folder that is missing, unfinished, without weights, or not a model, and
    for a Hub id that does not exist or is not open to this user; ResourceError where the Hub cannot
    be reached.
    """
    folder = Path(reference).expanduser()
    if not folder.exists() and is_hub_id(str(reference)):
        from slimtune.models.hub import download  # the Hub's client is 7 MB, and rarely asked

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
            "a script unpacks the GGUF that it is given as its model; this one came another way",
            "give the folder it was converted from, or the one it was unpacked into",
        )
    weight_files(folder)
    read_model_json(folder / "config.json")
    require_well_formed(folder)


def require_well_formed(folder: Path) -> None:
    """InputError that names the first file of a model folder that transformers could not read.

    tokenizer.json is looked at from outside only: who uses it reads it with `read_model_json`.
    """
    for name in json_files.FILES:
        file = folder / name
        if not file.is_file():
            continue
        if name == "tokenizer.json":
            json_files.require_whole(file)
        else:
            read_model_json(file)
    read_template(folder)


def read_template(folder: Path) -> str | None:
    """The chat template that lies in a model folder, None without one; InputError for no text."""
    file = folder / "chat_template.jinja"
    if not file.is_file():
        return None
    require_fetched(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: not a text", str(error), "copy it again from the original model, as UTF-8"
        ) from error


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, all of them; InputError with the cure otherwise."""
    # The single file first, as transformers does: an index may be left over from an older save.
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        names = _shards(folder)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(names)} shards missing, first {missing[0]}",
                f"{INDEX_FILE} lists them; a download or copy did not finish",
                "download or copy the missing files again, or run the stage that wrote them again",
            )
        return [folder / name for name in names]
    raise _no_weights(folder)


def _shards(folder: Path) -> list[str]:
    """The files that an index lists; InputError where it lists none, or one that lies elsewhere."""
    listed = read_model_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(
            f"{folder / INDEX_FILE}: no weight_map",
            "it tells which file holds which weight",
            "copy it again from the original model",
        )
    names = sorted(set(map(str, listed.values())))
    for name in names:
        inside(folder, name, INDEX_FILE)
    return names


def _no_weights(folder: Path) -> InputError:
    if not folder.is_dir():
        return InputError(
            f"{folder}: no such model folder",
            f"looked for {folder.absolute()}",
            "check the path, or run the stage that writes this folder first",
        )
    if (folder / "adapter_config.json").is_file():
        config = read_model_json(folder / "adapter_config.json")
        # Quoted, for the command below is there to be pasted.
        base = quoted(str(config.get("base_model_name_or_path", "BASE")))
        return InputError(
            f"{folder}: this is a LoRA adapter, not a model",
            "it holds adapter_config.json and only the low-rank weights",
            f"python finetune/evaluate_model.py --base-model {base} --lora-model {folder} --merge",
        )
    present = {file.suffix for file in folder.iterdir()}
    if present & _PICKLE_SUFFIXES:
        return InputError(
            f"{folder}: only pickled weights (.bin/.pt)",
            "a pickle can run any code when it is opened, so SlimTune reads safetensors only",
            "take the model's safetensors files, or convert those you trust with save_pretrained",
        )
    found = sorted(folder.glob("*.gguf"))
    cure = "give a folder with config.json and safetensors weights"
    if found:
        cure = f"name the file itself, it is unpacked then: {quoted(str(found[0]))}"
    return InputError(
        f"{folder}: no weights", f"neither {SINGLE_FILE} nor {INDEX_FILE} is there", cure
    )


def weights_identity(model: str) -> str:
    """A hash of a model's weights; moving or copying a folder or file changes nothing.

    It covers every byte of a file, and of a folder where a record of ours has the files' sums; of
    other folders names, sizes and `sampled` pieces, which any training changes. A server's model is
    its address and its name.
    """
    if model.startswith(ELSEWHERE):
        return model
    if os.path.isfile(model):
        return file_sum(Path(model))[:16]
    folder = local_folder(model)
    run = run_of(folder)
    sealed = run["files"] if run else {}
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        known = sealed.get(file.name)
        is_known = known is not None and known["bytes"] == file.stat().st_size
        told = known["sha256"] if is_known else sampled(file, _HEAD)
        digest.update(f"{file.name} {told}".encode())
    return digest.hexdigest()[:16]


def file_sum(file: Path) -> str:
    """SHA-256 of a model's only file, read once a run; what our record says was compared before."""
    run, about = run_of(file), file.stat()
    known = run["files"][file.name] if run else {}
    is_known = known.get("bytes") == about.st_size
    return known["sha256"] if is_known else _summed(file, about.st_size, about.st_mtime_ns)


@cache
def _summed(file: Path, size: int, changed: int) -> str:
    return sha256(file)


_HEAD = 1 << 20  # bytes: headers and shapes
_PIECES, _PIECE_BYTES = 256, 4096


def sampled(file: Path, head: int) -> str:
    """SHA-256 of a file's size, its first `head` bytes, and 1 MB in pieces from all over the rest,
    its end among them.
    """
    length = file.stat().st_size
    digest = hashlib.sha256(f"{length}".encode())
    with file.open("rb") as handle:
        digest.update(handle.read(head))
        for place in np.linspace(head, max(head, length - _PIECE_BYTES), _PIECES, dtype=np.int64):
            handle.seek(int(place))
            digest.update(handle.read(_PIECE_BYTES))
    return digest.hexdigest()
