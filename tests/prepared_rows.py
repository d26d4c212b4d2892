"""Raw files to prepare, and what became of them."""

import json
from pathlib import Path

from slimtune.config.data import Data
from slimtune.data import writing
from slimtune.data.preparation import prepare

SPLITS = ("train", "validation", "test")
PARTS = ("kept", "rejected", "duplicates", "near_duplicates", "leaks", "not_drawn", "too_long")


def alpaca_row(i: int, **more) -> dict:
    return {"instruction": f"Question {i}?", "input": "", "output": f"Answer {i}.", **more}


def saved(folder: Path, rows: list[dict], name: str = "raw.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


class Output:
    """A preparation written to a folder and read back."""

    def __init__(self, file: Path, *, fit=None, system_prompt: str = "", **settings) -> None:
        folder = file.parent / f"out of {file.name}"
        judged = prepare(Data(input=file, **settings), system_prompt=system_prompt)
        self.counts = judged.counts()
        self.numbers = writing.write_outputs(judged, folder, "train", fit)
        self.files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}
        for path in folder.iterdir():
            path.unlink()
        self.splits = {split: self._rows(f"train_{split}.jsonl") for split in SPLITS}
        self.rejected = self._rows("rejected.jsonl")
        self.rows = [row for rows in self.splits.values() for row in rows]

    def _rows(self, name: str) -> list[dict]:
        return [json.loads(line) for line in self.files.get(name, b"").split(b"\n") if line]

    def adds_up(self) -> bool:
        numbers = self.numbers
        return (
            numbers["rows_in"] == sum(numbers[part] for part in PARTS)
            and numbers["rejected"] == sum(numbers["reasons"].values())
            and numbers["rows_in"] - numbers["kept"] == len(self.rejected)
            and sum(numbers["splits"].values()) == len(self.rows)
            and sum(numbers["languages"].values()) == numbers["kept"]
        )
