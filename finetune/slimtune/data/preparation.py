"""Raw files in, clean and split rows out, and an account in which every row appears.

Two passes. The first reads: each row becomes a line in a spool file and 44 bytes of numbers in
memory. Then all rows are known, so what is repeated or leaks is known too. The second pass copies
the lines where they belong. Whatever the number of workers, the bytes are the same.
"""

import json
import logging
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from slimtune.config.data import Data
from slimtune.data import blocks, judging, sources
from slimtune.data.account import SPLITS
from slimtune.data.cleaning import (
    ConversionPlan,
    Converted,
    RowColumns,
    convert_block,
    numbered_rows,
)
from slimtune.data.columns import (
    add_values,
    group_name,
    maps_any,
    parse_mapping,
    renamed,
    require_columns,
    small,
)
from slimtune.data.rows import SAMPLE, CanonicalRow, no_usable_column, shape_of_row
from slimtune.data.shapes import SHAPES, RawRow, has_columns, require_one_answer, unfolded
from slimtune.data.sources import SourceFile
from slimtune.data.whole_numbers import Columns, whole_columns
from slimtune.data.workers import spread
from slimtune.errors import InputError

_log = logging.getLogger(__name__)

_WORKER_BYTES = 64 << 20  # of input that make another process worth its start
_MOST_WORKERS = 8


@dataclass
class Prepared:
    """All rows read and judged: their lines in `spool`, their numbers in memory."""

    settings: Data
    sources: list[dict[str, Any]]  # {"file", "encoding", "format", "shape", "rows"} of each
    columns: RowColumns
    judged: judging.Judgement
    reasons: Counter
    cleaning: Counter
    unused: dict[str, dict[str, float]]  # column -> share of rows that have it, mean length
    spool: BinaryIO
    workers: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The spool goes before its folder moves: Windows moves none with an open file in it."""
        self.spool.close()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(place, line) of every row in the order of the input."""
        self.spool.seek(0)
        yield from enumerate(self.spool)

    def rows(self, split: str) -> list[CanonicalRow]:
        """The kept rows of a split, in memory: for small inputs."""
        wanted = SPLITS.index(split)
        kind, of_split = self.judged.kind, self.judged.split
        return [
            json.loads(line)
            for place, line in self.lines()
            if not kind[place] and of_split[place] == wanted
        ]

    def counts(self) -> dict[str, int]:
        """Rows of each split and of each kind that is left out."""
        kept = self.judged.kind == 0
        of_split = self.judged.split
        counts = {name: int((kept & (of_split == n)).sum()) for n, name in enumerate(SPLITS)}
        copies = self.judged.copies[kept & (of_split == SPLITS.index("train"))]
        return counts | {"train": int(copies.sum()), "left out": int((~kept).sum())}


def prepare(settings: Data, folder: Path | None = None, system_prompt: str = "") -> Prepared:
    """Read, convert, clean and judge every row of `settings.input` and of the files beside it.

    The spool file lies in `folder` (else where the system keeps temporary files) and vanishes with
    the process, or at the end of a `with` block. `system_prompt` opens every conversation that has
    no system message of its own.
    Raises InputError for a file without usable rows and for more bad rows than allowed,
    SettingsError for unknown names.
    """
    mapping = parse_mapping(settings.columns)
    settings, found = sources.find_splits(settings)
    found = [_headed(source, mapping) for source in found]
    heads = {source.name: _head(source) for source in found}
    require_columns(mapping, heads)
    group = group_name(settings.group_column, mapping, heads.values())
    settings = settings.model_copy(update={"group_column": group})
    for name, rows in heads.items():
        named = [renamed(row, mapping) for row in rows]
        require_one_answer(name, named, settings.several_answers)
    shapes = {source.name: _shape(source, settings, mapping) for source in found}
    whole = {one.name: _whole(one, heads[one.name], shapes[one.name], mapping) for one in found}
    plan = ConversionPlan(settings, system_prompt, mapping, shapes, whole)
    spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    try:
        return _read_and_judge(settings, found, plan, spool)
    except BaseException:
        spool.close()  # Windows deletes no folder while a file in it is open
        raise


def _read_and_judge(
    settings: Data, found: list[SourceFile], plan: ConversionPlan, spool: BinaryIO
) -> Prepared:
    columns, reasons, cleaning, rows = RowColumns(), Counter(), Counter(), Counter()
    unused, lengths, values = Counter(), Counter(), {}
    order = {source.name: place for place, source in enumerate(found)}
    items = (block for source in found for block in blocks.cut(source))
    workers = worker_count(settings, found)
    for name, done in spread(_named, items, plan, workers):
        _number(done, order[name], rows[name])
        columns.extend(done.columns)
        spool.writelines(map(numbered_rows, done.lines, done.columns.row))
        reasons.update(done.reasons)
        cleaning.update(done.cleaning)
        unused.update(done.unused)
        lengths.update(done.unused_length)
        add_values(values, done.values)
        rows[name] += done.rows
        _require_good(settings, reasons, len(columns.row), at_end=False)
    _require_good(settings, reasons, len(columns.row), at_end=True)
    roles = np.array(
        [SPLITS.index(s.split) if s.split else judging.BY_HASH for s in found], np.uint8
    )
    of_row = roles[np.frombuffer(columns.file, np.uint16)]
    judged = judging.judge(columns, of_row, settings, [source.weight for source in found])
    told = [
        _told(source, plan.shapes[source.name], rows[source.name], mixed=len(found) > 1)
        for source in found
    ]
    total = max(len(columns.row), 1)
    spare = {
        column: {"filled": round(count / total, 4), "characters": round(lengths[column] / count)}
        | ({"values": few} if (few := small(values[column])) else {})
        for column, count in unused.most_common()
    }
    prepared = Prepared(settings, told, columns, judged, reasons, cleaning, spare, spool, workers)
    _require_train(prepared)
    return prepared


def _headed(source: SourceFile, mapping: Mapping[str, str]) -> SourceFile:
    """Where the user's mapping names a column of a first row that looked like data, it is none."""
    return replace(source, headless=()) if maps_any(mapping, source.headless) else source


def _named(block: blocks.Block, plan: ConversionPlan) -> tuple[str, Converted]:
    return block.source.name, convert_block(block, plan)


def _number(done: Converted, file: int, before: int) -> None:
    """Rows were numbered within their block: add those of the file that came before it."""
    done.columns.row = array("I", (before + row for row in done.columns.row))
    done.columns.file = array("H", [file]) * len(done.columns.row)


def _shape(source: SourceFile, settings: Data, mapping: dict[str, str]) -> str:
    """The shape of a file, by its first rows of which any is usable."""
    shapes = list(SHAPES) if settings.format_type == "auto" else [settings.format_type]
    rows, first_bad = _good_rows(source, mapping)
    head: list[RawRow] = []
    while sample := list(islice(rows, SAMPLE)):
        head = head or sample
        if any(
            has_columns(shape, one)
            for shape in shapes
            for row in sample
            for one, _ in unfolded(row)
        ):
            return shape_of_row(source.file, sample) if len(shapes) > 1 else shapes[0]
    if not head and first_bad:
        line, reason = first_bad[0]
        raise InputError(
            f"{source.file}:{line}: cannot be read",
            f"{reason}; no other row of the file can be read either",
            "check that it is what --input-format says, or repair it",
        )
    raise no_usable_column(source.file, head, shapes)


def _head(source: SourceFile) -> list[RawRow]:
    """The first rows that can be parsed, under the file's own names."""
    parsed = (row for block in blocks.cut(source) for _, row in blocks.parse(block))
    return list(islice((row for row in parsed if not isinstance(row, blocks.BadLine)), SAMPLE))


def _whole(
    source: SourceFile, head: list[RawRow], shape: str, mapping: Mapping[str, str]
) -> Columns:
    named = [renamed(row, mapping) for row in head]
    texts = source.format == "csv"
    return whole_columns(named, lambda: _good_rows(source, mapping)[0], shape, texts=texts)


def _good_rows(
    source: SourceFile, mapping: Mapping[str, str]
) -> tuple[Iterator[RawRow], list[tuple[int, str]]]:
    """The rows that can be parsed; the list fills with the first line that cannot."""
    first_bad: list[tuple[int, str]] = []

    def rows() -> Iterator[RawRow]:
        for block in blocks.cut(source):
            for line, row in blocks.parse(block):
                if not isinstance(row, blocks.BadLine):
                    yield renamed(row, mapping)
                elif not first_bad:
                    first_bad.append((line, row.reason))

    return rows(), first_bad


def worker_count(settings: Data, found: Iterable[SourceFile]) -> int:
    """As asked; else one process for each 64 MB of input, within reason."""
    if settings.workers:
        return settings.workers
    size = sum(source.file.stat().st_size for source in found)
    return max(1, min(size // _WORKER_BYTES, os.cpu_count() or 1, _MOST_WORKERS))


def _told(source: SourceFile, shape: str, rows: int, *, mixed: bool) -> dict[str, Any]:
    told = {**source.told(), "shape": shape, "rows": rows}
    if source.weight != 1:
        told["weight"] = f"{source.weight:g}"
    if mixed or source.weight != 1:
        told["train_rows"] = 0  # counted when they are written
    return told


def _require_good(settings: Data, reasons: Counter, rows: int, *, at_end: bool) -> None:
    """InputError when more rows are rejected than allowed; a share is known at the end only."""
    bad, limit = reasons.total(), settings.max_bad_rows
    if limit < 1 and (not at_end or bad <= limit * rows):
        return
    if limit >= 1 and bad <= limit:
        return
    allowed = f"{limit:g}" if limit >= 1 else f"{limit:.0%} of them"
    reason, count = reasons.most_common(1)[0]
    raise InputError(
        f"{settings.input}: {bad} bad rows among the {'' if at_end else 'first '}{rows}",
        f"--max-bad-rows allows {allowed}; most often ({count} times): {reason}",
        "repair the file, check --format-type and --columns, or raise --max-bad-rows",
    )


def _require_train(prepared: Prepared) -> None:
    counts, file = prepared.counts(), prepared.settings.input
    if not counts["train"]:
        shapes = ", ".join(dict.fromkeys(source["shape"] for source in prepared.sources))
        kept = sum(counts[name] for name in SPLITS)
        raise InputError(
            f"{file}: no row left to train on",
            f"read as {shapes}: {counts['left out']} set aside, {kept} kept",
            "give more rows, or smaller shares for validation and test",
        )
    for name in SPLITS[1:]:
        if not counts[name]:
            _log.warning("%s: the %s split is empty; give it more rows or a share", file, name)
