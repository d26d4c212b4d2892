"""run.json: what a stage was, what it read and wrote, and what it took."""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from slimtune.config import Config

RUN = "run.json"
_PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "gguf")


def record(
    name: str,
    folder: Path,
    metrics: dict[str, Any],
    config: Config,
    inputs: Sequence[Path | str],
    started: float,
) -> dict[str, Any]:
    return {
        "run_id": uuid.uuid4().hex,
        "stage": name,
        "command": command(),
        "settings": config.model_dump(mode="json"),
        "inputs": [_input(one) for one in inputs],
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != RUN
        },
        "metrics": metrics,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
        "peak_memory_bytes": peak_memory(),
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(),
    }


def _input(one: Path | str) -> dict[str, Any]:
    run = run_of(Path(one)) if Path(one).exists() else None
    return {"path": str(one), "run_id": run["run_id"] if run else None}


def command() -> list[str]:
    """The command line as it was typed, without secrets."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return ["hf_***" if word.startswith("hf_") else word for word in words]


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let `peak_memory` count from now on: the next stage of a long process begins. Linux only."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


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


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def write_json(file: Path, value: Any) -> None:
    with file.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.flush()
        os.fsync(handle.fileno())


def read_manifest(file: Path) -> dict[str, Any] | None:
    """A run.json or NAME_run.json, None where there is none or it is no manifest."""
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and "run_id" in run and "files" in run else None


def run_of(path: Path) -> dict[str, Any] | None:
    """The record of the stage that wrote a folder or a file, None for what we did not write."""
    if path.is_dir():
        return read_manifest(path / RUN)
    for manifest in [*path.parent.glob("*_run.json"), path.parent / RUN]:
        run = read_manifest(manifest)
        if run and path.name in run["files"]:
            return run
    return None
