"""Reading what stages wrote: whole and unchanged, or an error that names the script to run.

A reader only reads. What a run that was killed had not yet put in its place is left to the script
that writes it, for whoever gives somebody a folder can put anything into it.
"""

import difflib
from pathlib import Path

from slimtune.artifacts.files import broken
from slimtune.artifacts.installing import interrupted
from slimtune.artifacts.records import RUN, run_of
from slimtune.config import SCRIPTS
from slimtune.console import near
from slimtune.errors import InputError

CARD = "README.md"  # for people, who add to it before they pass a model on: no stage goes by it
_HEAD = 4096  # bytes of a run.json in which its run_id stands
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


def require(reference: Path | str) -> None:
    """Raise InputError unless a stage's output is there, finished, and unchanged since.

    A Hub id passes: loading it says the rest. So does a folder that no stage of ours wrote.
    """
    path = Path(reference)
    if not path.is_absolute():
        return
    if any(part.endswith(".partial") for part in path.parts):
        raise _unfinished(path)
    stopped = None if path.is_dir() else interrupted(path)
    if stopped:
        raise _stopped(path, *stopped)
    if not path.exists():
        raise _missing(path)
    run = run_of(path)
    if run is None:
        _require_believable(path)
        return
    root = path if path.is_dir() else path.parent
    files = run["files"] if path.is_dir() else {path.name: run["files"][path.name]}
    changed = broken(root, {name: one for name, one in files.items() if name != CARD})
    if changed is not None:
        raise _changed(root / changed, run["stage"], path)


def _require_believable(path: Path) -> None:
    """InputError for a folder with a run.json that says it is ours and cannot be believed."""
    manifest = path / RUN
    if not manifest.is_file():
        return
    with manifest.open("rb") as file:
        head = file.read(_HEAD)
    if b'"run_id"' in head:
        raise InputError(
            f"{near(manifest)}: not a record that SlimTune writes",
            "it lacks something, or names files outside its own folder",
            f"run {_maker(path)} again, or take the folder from its source again",
        )


def _changed(file: Path, stage: str, path: Path) -> InputError:
    return InputError(
        f"{near(file)}: not as {stage} left it",
        "its SHA-256 differs from run.json's: it was changed, or the disk failed",
        f"run {_maker(path)} again with --overwrite",
    )


def _maker(path: Path) -> str:
    names = [*reversed(path.parts[-4:])]
    script = next((_MADE_BY[name] for name in names if name in _MADE_BY), None)
    return f"`python finetune/{script}`" if script else "the script that makes it"


def _missing(path: Path) -> InputError:
    if path.with_name(path.name + ".partial").exists():
        return _unfinished(path)
    if not path.parent.exists() or _maker(path) != "the script that makes it":
        cure = f"run {_maker(path)} first, or name another path"
    else:
        names = [one.name for one in path.parent.glob("[!.]*")]  # no lock
        near_names = difflib.get_close_matches(path.name, names, n=1)
        cure = f"did you mean {near_names[0]}?" if near_names else "check the path"
    return InputError(f"{near(path)}: not there", f"looked for {path}", cure)


def _unfinished(path: Path) -> InputError:
    return InputError(
        f"{near(path)}: the stage that writes it did not finish",
        "only a .partial folder is there",
        f"run {_maker(path)} again",
    )


def _stopped(path: Path, ready: Path, stage: str) -> InputError:
    script = f"`python finetune/{stage}.py`" if stage in SCRIPTS else _maker(path)
    return InputError(
        f"{near(path)}: the run that writes it was stopped while its files moved to their places",
        f"what is still to be moved waits in {near(ready)}",
        f"run {script} again: it goes on with that; if {near(ready)} is not yours, delete it",
    )
