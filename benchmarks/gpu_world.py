"""What benchmarks/gpu.py measures with: a model of a known shape and real rows, on disk."""

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from export_models import SHAPES, Shape, write_model
from gpu_table import GB, Memory
from measuring import SHARED_DATA

TOKENIZER = SHARED_DATA / "llama2-tokenizer" / "tokenizer.model"
ROWS = SHARED_DATA / "instruct" / "alpaca_en_demo.json"
_FEWEST, _MOST = 2, 6  # characters a token


@dataclass(frozen=True)
class Size:
    """A model and how much it is given to do.

    `target` are the parameters that pruning leaves. Where memory is measured a row has `length`
    tokens, `batches` of them go into a step, `update` into an update and `updates` of these into a
    run. `rows` as they come, cut to `length`, are for trainers and generation, `calibration_rows`
    of them for pruning. `disk`: bytes that are written at most.
    """

    shape: Shape
    target: str
    length: int
    batches: tuple[int, ...]
    update: int
    updates: int
    rows: int
    calibration_rows: int
    disk: int


SIZES = {
    "7b": Size(SHAPES["7b"], "5e9", 512, (1, 2, 4), 16, 6, 256, 32, 36 * GB),
    "small": Size(SHAPES["small"], "18.5M", 128, (4,), 4, 2, 16, 8, GB),
}


@dataclass(frozen=True)
class World:
    """Where things lie, how large they are, and where and with how many threads is computed."""

    folder: Path
    size: Size
    memory: Memory
    threads: int

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def student(self) -> Path:
        return self.folder / "pruned"

    @property
    def full_rows(self) -> Path:
        """Rows of `size.length` tokens each."""
        return self.folder / "full_rows.jsonl"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    def write(self) -> None:
        """The model, unless an earlier part left it, and the rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._require_disk()
        write_model(self.model, self.size.shape, TOKENIZER)
        rows = json.loads(ROWS.read_text(encoding="utf-8"))
        _write(self.rows, random.Random(0).sample(rows, self.size.rows))
        _write(self.full_rows, _full(rows, self.size.length, self.size.update * self.size.updates))

    def _require_disk(self) -> None:
        status = os.statvfs(self.folder)
        free = status.f_bavail * status.f_frsize
        needed = self.size.disk - sum(
            file.stat().st_size for file in self.folder.rglob("*") if file.is_file()
        )
        if free < needed:
            sys.exit(f"{self.folder}: {free / GB:.0f} GB free, {needed / GB:.0f} GB needed")


def _full(rows: list[dict[str, str]], length: int, count: int) -> list[dict[str, str]]:
    """The longest answers that fit; before their questions text of other rows, more than fits.

    Training shortens a row at the start of its question, so each becomes `length` tokens long.
    """
    fitting = [row for row in rows if len(row["output"]) < _FEWEST * length]
    fitting.sort(key=lambda row: -len(row["output"]))
    more = " ".join(row["output"] for row in fitting)[: _MOST * length]
    return [row | {"instruction": f"{more} {row['instruction']}"} for row in fitting[:count]]


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
