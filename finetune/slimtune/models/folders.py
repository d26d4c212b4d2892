"""Model folders on disk: which files are the weights, and what to say where there are none."""

import json
from pathlib import Path

from slimtune.console import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, all of them; InputError with the cure otherwise."""
    # The single file first, as transformers does: an index may be left over from an older save.
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(read_json(folder / INDEX_FILE)["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(names)} shards missing, first {missing[0]}",
                f"{INDEX_FILE} lists them; a download or copy did not finish",
                "download or copy the missing files again, or run the stage that wrote them again",
            )
        return [folder / name for name in names]
    raise _no_weights(folder)


def _no_weights(folder: Path) -> InputError:
    if not folder.is_dir():
        return InputError(
            f"{folder}: no such model folder",
            f"looked for {folder.absolute()}",
            "check the path, or run the stage that writes this folder first",
        )
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "BASE")
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
    gguf = (
        " (it holds a .gguf file: only evaluate_model.py reads those)" if ".gguf" in present else ""
    )
    return InputError(
        f"{folder}: no weights",
        f"neither {SINGLE_FILE} nor {INDEX_FILE} is there{gguf}",
        "give a folder with config.json and safetensors weights",
    )


def read_json(file: Path) -> dict:
    """A JSON object from a model folder; InputError if it is missing or malformed."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{file}: missing", "a model folder needs it", "copy it from the original model"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{file}: not valid JSON", str(error), "copy it again from the original model"
        ) from error


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
