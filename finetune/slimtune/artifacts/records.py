"""run.json: what a stage was, what it read and wrote, and what it took.

A manifest that comes from outside is believed only in part: it is one of ours if it has the right
form and names nothing but files inside its own folder, and its files count if their bytes agree.
"""

import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any

from slimtune.artifacts.files import are_sealed, is_plain, json_or_none, seal
from slimtune.config import Config
from slimtune.machine.process import peak_memory
from slimtune.masking import masked_in

RUN = "run.json"
_PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "gguf")
_LARGEST = 16 << 20  # bytes: a manifest of ours has a few thousand
_MOST_INPUTS = 1000
# What everything that reads a manifest may count on; the rest is for people.
_FORM: dict[str, type | tuple[type, ...]] = {
    "run_id": str,
    "stage": str,
    "started": str,
    "seconds": (int, float),
    "peak_memory_bytes": int,
    "command": list,
    "settings": dict,
    "inputs": list,
    "files": dict,
    "metrics": dict,
    "versions": dict,
    "machine": str,
    "git_commit": (str, NoneType),
}


def record(
    name: str,
    folder: Path,
    manifest: str,
    metrics: dict[str, Any],
    config: Config,
    inputs: Sequence[Path | str],
    started: float,
) -> dict[str, Any]:
    """The manifest of a stage whose output is complete in `folder`: it seals every other file."""
    told = {
        "run_id": uuid.uuid4().hex,
        "stage": name,
        "command": command(),
        "settings": config.model_dump(mode="json"),
        "inputs": [_input(one) for one in inputs],
        "metrics": metrics,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
        "peak_memory_bytes": peak_memory(),
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(),
    }
    return masked_in(told) | {"files": seal(folder, without=manifest)}


def read_manifest(file: Path) -> dict[str, Any] | None:
    """A run.json or NAME_run.json of ours; None where there is none, or it is not to be believed.

    Every name in it is one inside its folder, every entry has the type that readers count on.
    """
    try:  # a pipe would never come to its end
        if not file.is_file() or file.stat().st_size > _LARGEST:
            return None
    except OSError:
        return None
    run = json_or_none(file)
    return run if run is not None and _is_ours(run) else None


def _is_ours(run: dict[str, Any]) -> bool:
    if not all(name in run and isinstance(run[name], kind) for name, kind in _FORM.items()):
        return False
    words = all(isinstance(word, str) for word in run["command"])
    # These are printed: the first word of the command as a script to run again.
    told = all(is_plain(name) and "/" not in name for name in (run["stage"], *run["command"][:1]))
    told &= run["started"].isprintable() and len(run["inputs"]) <= _MOST_INPUTS
    inputs = all(isinstance(one, dict) and _is_input(one) for one in run["inputs"])
    sections = all(isinstance(section, dict) for section in run["settings"].values())
    files = are_sealed(run["files"])
    return bool(run["command"] and words and told and inputs and sections and files)


def _is_input(one: dict[str, Any]) -> bool:
    path, run_id = one.get("path"), one.get("run_id")
    return isinstance(path, str) and "\0" not in path and isinstance(run_id, str | None)


def run_of(path: Path) -> dict[str, Any] | None:
    """The record of the stage that wrote a folder or a file, None for what we did not write."""
    if path.is_dir():
        return read_manifest(path / RUN)
    for manifest in [*sorted(path.parent.glob("*_run.json")), path.parent / RUN]:
        run = read_manifest(manifest)
        if run and path.name in run["files"]:
            return run
    return None


def ancestors(*paths: Path) -> Iterator[dict[str, Any]]:
    """The records of everything that led to `paths`, theirs first, each once.

    Records may name any path: nothing is opened there but the record beside it.
    """
    waiting, seen, given = list(paths), set(), set()
    while waiting:
        path = waiting.pop(0)
        run = run_of(path) if path not in seen and os.path.exists(path) else None
        seen.add(path)
        if run and run["run_id"] not in given:
            given.add(run["run_id"])
            yield run
            waiting += [Path(one["path"]) for one in run["inputs"]]


def lineage(*paths: Path) -> dict[str, dict[str, Any]]:
    """{stage: its record} of everything that led to `paths`; the nearest of a stage counts."""
    found: dict[str, dict[str, Any]] = {}
    for run in ancestors(*paths):
        found.setdefault(run["stage"], run)
    return found


def system_prompt_for(config: Config, *paths: Path) -> str:
    """The system message for rows and chats without one: the settings', else the recorded one.

    Recorded is what all training rows of a model opened with; of a lineage the nearest counts.
    """
    if config.model.system_prompt is not None:
        return config.model.system_prompt
    for run in lineage(*paths).values():
        found = run["metrics"].get("system_prompt")
        if isinstance(found, str):
            return found
    return ""


def _input(one: Path | str) -> dict[str, Any]:
    run = run_of(Path(one)) if Path(one).exists() else None
    return {"path": str(one), "run_id": run["run_id"] if run else None}


def command() -> list[str]:
    """The command line as it was typed, without secrets."""
    return masked_in([Path(sys.argv[0]).name, *sys.argv[1:]])


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


@cache
def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **installed}


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
