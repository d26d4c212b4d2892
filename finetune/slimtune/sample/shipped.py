"""The sample models as they ship: bf16 weights beside the library."""

from __future__ import annotations

import shutil
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
NAMES = ("base", "teacher")


def unpack(folder: Path) -> list[Path]:
    """Copy the shipped models to `folder`/base and `folder`/teacher; returns the two folders."""
    return [Path(shutil.copytree(WEIGHTS / n, folder / n, dirs_exist_ok=True)) for n in NAMES]
