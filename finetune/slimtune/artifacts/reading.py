"""Reading what stages wrote: whole and unchanged, or an error that names the script to run."""

import difflib
from pathlib import Path
from typing import Any

from slimtune.artifacts.records import run_of, sha256
from slimtune.artifacts.stages import finish_files
from slimtune.console import InputError, near

_MADE_BY = {
    "sample": "create_sample_data.py",
    "raw_data.json": "create_sample_data.py",
    "raw_data.csv": "create_sample_data.py",
    "sample_text.txt": "create_sample_data.py",
    "finetune": "prepare_data.py",
    "lora_adapter": "train_lora.py",
    "full_model": "train_lora.py --method full",
    "merged_model": "evaluate_model.py --merge",
    "pruned": "model_pruning.py",
    "distilled": "knowledge_distillation.py",
    "pruned_distilled": "train_pruned_distilled.py",
    "gguf": "convert_to_gguf.py",
}


def lineage(*paths: Path) -> dict[str, dict[str, Any]]:
    """{stage: its record} of everything that led to `paths`; the first found of a stage counts."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(paths)
    while waiting:
        run = run_of(waiting.pop(0))
        if run and run["stage"] not in found:
            found[run["stage"]] = run
            waiting += [Path(one["path"]) for one in run["inputs"] if Path(one["path"]).exists()]
    return found


def require(reference: Path | str) -> None:
    """Raise InputError unless a stage's output is there, finished, and unchanged since.

    A Hub id passes: loading it says the rest. So does a folder that no stage of ours wrote.
    """
    path = Path(reference)
    if not path.is_absolute():
        return
    if any(part.endswith(".partial") for part in path.parts):
        raise _unfinished(path)
    finish_files(path.parent)
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        raise _unfinished(path) if partial.exists() else _missing(path)
    run = run_of(path)
    root = path if path.is_dir() else path.parent
    for name in (run["files"] if run else {}) if path.is_dir() else [path.name] * bool(run):
        if not (root / name).is_file() or sha256(root / name) != run["files"][name]["sha256"]:
            raise InputError(
                f"{near(root / name)}: not as {run['stage']} left it",
                "its SHA-256 differs from run.json's: it was changed, or the disk failed",
                f"run {_maker(path)} again with --overwrite",
            )


def _maker(path: Path) -> str:
    names = [*reversed(path.parts[-4:])]
    script = next((_MADE_BY[name] for name in names if name in _MADE_BY), None)
    return f"`python finetune/{script}`" if script else "the script that makes it"


def _missing(path: Path) -> InputError:
    if not path.parent.exists() or _maker(path) != "the script that makes it":
        cure = f"run {_maker(path)} first, or name another path"
    else:
        names = [one.name for one in path.parent.iterdir()]
        near_names = difflib.get_close_matches(path.name, names, n=1)
        cure = f"did you mean {near_names[0]}?" if near_names else "check the path"
    return InputError(f"{near(path)}: not there", f"looked for {path}", cure)


def _unfinished(path: Path) -> InputError:
    return InputError(
        f"{near(path)}: the stage that writes it did not finish",
        "only a .partial folder is there",
        f"run {_maker(path)} again",
    )
