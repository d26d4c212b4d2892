"""A folder that came with somebody's data, and what its packer may have tried.

`came/` is the folder, `victim` beside it and `outside/` are the user's own.
"""

import hashlib
import json
import os
from pathlib import Path

PRECIOUS, PAYLOAD = b"the user's own", b"somebody else's"
ROWS = "train_train.jsonl"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def record(contents: dict[str, bytes], **changes: object) -> dict[str, object]:
    """A record as ours are, so that nothing but the names in it can be the reason to refuse it."""
    entries = {n: {"sha256": digest(data), "bytes": len(data)} for n, data in contents.items()}
    return {
        "run_id": "0" * 32,
        "stage": "prepare_data",
        "command": ["prepare_data.py"],
        "settings": {},
        "inputs": [],
        "files": entries,
        "metrics": {},
        "started": "2026-01-01 00:00:00",
        "seconds": 1.0,
        "peak_memory_bytes": 1,
        "versions": {},
        "machine": "",
        "git_commit": None,
    } | changes


def write_record(file: Path, contents: dict[str, bytes], **changes: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record(contents, **changes)))


def write_ready(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """What a run that was killed at its very end leaves, with `files` in its record."""
    ready = folder / f"{name}.ready"
    write_record(ready / f"{name}_run.json", files)
    return ready


def overwriting(came: Path, name: str) -> None:
    write_ready(came, name, {"../victim": PAYLOAD})
    (came / "victim").write_bytes(PAYLOAD)  # `../victim`, seen from NAME.ready


def removing(came: Path, name: str) -> None:
    write_ready(came, name, {})
    write_record(came / f"{name}_run.json", {"../victim": PRECIOUS})


def removing_by_absolute_name(came: Path, name: str) -> None:
    write_ready(came, name, {})
    write_record(came / f"{name}_run.json", {str(came.parent / "victim"): PRECIOUS})


def through_a_link(came: Path, name: str) -> None:
    ready = write_ready(came, name, {"sub/victim": PAYLOAD})
    (ready / "sub").mkdir()
    (ready / "sub/victim").write_bytes(PAYLOAD)
    (came / "sub").unlink(missing_ok=True)
    (came / "sub").symlink_to(came.parent / "outside")


def other_bytes_than_recorded(came: Path, name: str) -> None:
    ready = write_ready(came, name, {ROWS: PRECIOUS})
    (ready / ROWS).write_bytes(PAYLOAD)


def a_link_to_a_folder(came: Path, name: str) -> None:
    write_record(came.parent / f"outside/{name}_run.json", {ROWS: PAYLOAD})
    (came.parent / "outside" / ROWS).write_bytes(PAYLOAD)
    (came / f"{name}.ready").symlink_to(came.parent / "outside")


def another_file_of_the_folder(came: Path, name: str) -> None:
    """Nothing leads out of the folder, all bytes agree; but no run of the stage writes it."""
    ready = write_ready(came, name, {"config.yaml": PAYLOAD})
    (ready / "config.yaml").write_bytes(PAYLOAD)
    (came / "config.yaml").write_bytes(PRECIOUS)
    write_record(came / f"{name}_run.json", {"config.yaml": PRECIOUS})


ATTACKS = [
    another_file_of_the_folder,
    overwriting,
    removing,
    removing_by_absolute_name,
    through_a_link,
    other_bytes_than_recorded,
    a_link_to_a_folder,
]


def came_in(home: Path) -> Path:
    """The folder that came, with rows, in a home with files of the user's."""
    for file in (home / "victim", home / "outside/victim", home / "came" / ROWS):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(PRECIOUS)
    return home / "came"


def everything(folder: Path) -> dict[str, object]:
    """All names under `folder`, locks too, with what they hold or where they lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }
