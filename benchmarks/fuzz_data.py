"""Damaged files of every format through prepare_data's readers, for as long as it is told.

    python benchmarks/fuzz_data.py --seconds 600 --seed 1 --keep /tmp/found

Each round writes a table in some format, most often mutates its bytes, and prepares it. Whatever
the file, the run ends with its rows accounted for or with exit 2 or 3 and words; every line of a
text table is in some row or none. What does otherwise is a finding: it is printed, and its file
kept. A finding becomes a case of tests/cases or tests/library/data.
"""

import argparse
import csv
import gzip
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "finetune"))

import openpyxl
import pandas
import pyarrow
from pyarrow import ipc, parquet
from pydantic import ValidationError

from slimtune.config.data import Data
from slimtune.data import writing
from slimtune.data.account import ROW_KINDS, SPLITS
from slimtune.data.preparation import Prepared, prepare
from slimtune.errors import SlimTuneError
from slimtune.report import data_report

ROUND_SECONDS = 20
Row = dict[str, Any]
TEXTS = (
    "What is 2+3?", "你好，世界。", "Say “hi”", "a,b;c|d\te", 'quote " inside', "line\nbreak",
    "crlf\r\nx", "=1+1", "<s>[INST] x [/INST]", "emoji 😀👩‍👩‍👧", "U+2028\u2028x", "\ufeffmark",
    '{"a":1}', "café", "x" * 200, " ", "0", "null", "2.0", "nan", "无", "'", '"', "long " * 60,
)  # fmt: skip
ODD = (
    None, True, False, 0, -1, 2.0, 1e308, float("nan"), float("inf"), 10**30, "", [], {}, [None],
    [1], {"a": None}, "\ud800", ["\ud83d"], {"role": "user"}, {"from": None, "value": 3}, "\x00",
    [["x"]], {"text": ["a", "b"]}, {"question": "q", "answer": "a"},
)  # fmt: skip
NAMES = ("messages", "output", "instances", "history", "system", "source", "id", "references",
         "answers", "问题", "", " question", "QUESTION", "columns", "data", "column 1")  # fmt: skip
TOKENS = (
    b'"', b"'", b",", b"\n", b"\r\n", b"\r", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud800",
    b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"\x80",
    b"\xe4\xbd", b"\xc4\xe3", b"NaN", b"Infinity", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000,
    b"1e999", b"\t", b";", b"|", b'""', b"\xe2\x80\xa8", b"\x1a", b"\x0b", b"true", b"]}",
    b",,,,,,", b'"\n"', b"\x85", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"sep=;\n", b"<html",
    b"version https://git-lfs", b"</v>", b"<f>1</f>", b"\n\n\n",
)  # fmt: skip
ENCODINGS = ("utf-8",) * 6 + ("utf-8-sig", "utf-16", "utf-16-le", "gb18030", "big5", "shift_jis",
                              "euc_kr", "cp1252")  # fmt: skip


class Rounds:
    """The makers of one run: everything random comes from one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def text(self) -> str:
        return f"{self.chance.choice(TEXTS)} {self.chance.randrange(1000)}"

    def rows(self) -> list[Row]:
        asked = [self.text() for _ in range(self.chance.randrange(1, 25))]
        shape: Callable[[str], Row] = self.chance.choice(
            (
                lambda text: {"instruction": text, "input": "", "output": self.text()},
                lambda text: {"question": text, "answer": self.text()},
                lambda text: {"question": text, "answer": 2.0, "context": self.text()},
                lambda text: {"prompt": text, "completion": self.text(), "n": len(text)},
                lambda text: {"messages": [{"role": "user", "content": text},
                                           {"role": "assistant", "content": self.text()}]},
                lambda text: {"conversations": [{"from": "human", "value": text},
                                                {"from": "gpt", "value": self.text()}]},
                lambda text: {"instruction": text, "instances": [
                    {"input": "", "output": self.text()}, {"input": text, "output": "x"}]},
            )
        )  # fmt: skip
        rows = [shape(text) for text in asked]
        return [self.odd(row) for row in rows] if self.chance.random() < 0.4 else rows

    def odd(self, value: Any) -> Any:
        """Here and there another value, another name, or none."""
        if self.chance.random() < 0.1:
            return self.chance.choice(ODD)
        if isinstance(value, dict):
            named = {name: self.odd(one) for name, one in value.items()}
            if self.chance.random() < 0.2:
                named[self.chance.choice(NAMES)] = self.chance.choice(ODD)
            return named
        return [self.odd(one) for one in value] if isinstance(value, list) else value

    def mutated(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 8))):
            at = self.chance.randrange(len(changed) + 1)
            end = min(len(changed), at + self.chance.choice((0, 1, 2, 4, 16, 100, 1000)))
            what = self.chance.randrange(5)
            if what == 0:
                changed[at:end] = self.chance.choice(TOKENS)
            elif what == 1:
                changed[at:at] = self.chance.choice(TOKENS)
            elif what == 2:
                del changed[at:end]
            elif what == 3:
                changed[at:at] = changed[at:end]
            else:
                changed[at:end] = self.chance.randbytes(end - at)
        return bytes(changed)

    def settings(self, file: Path) -> Data:
        """What a user may ask for beside the file."""
        few = self.chance.random() < 0.15
        weight = self.chance.choice(("", "", ":2", ":0.5", ":1.5"))
        return Data(
            input=Path(f"{file}{weight}"),
            input_format=self.chance.choice(("json", "jsonl", "csv", "tsv", "parquet", "arrow",
                                             "xlsx")) if few else "auto",
            max_bad_rows=self.chance.choice((0.5, 1e9, 1e9)),
            validation_ratio=self.chance.choice((0, 0.1)),
            test_ratio=self.chance.choice((0, 0.1)),
            similarity=self.chance.choice((0, 0, 0.8)),
            duplicates=self.chance.choice(("near", "exact", "keep")),
            several_answers=self.chance.choice(("ask", "accepted", "first")),
            columns=self.chance.choice(("", "", "", "question=instruction,answer=output",
                                        "question=column 1,answer=column 2")),
            group_column=self.chance.choice(("fact", "", "id")),
            workers=1,
        )  # fmt: skip


def as_table(rounds: Rounds, rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["question", "answer"]
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=rounds.chance.choice(",;\t|"),
        lineterminator=rounds.chance.choice(("\n", "\r\n")),
        quoting=rounds.chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    )
    if rounds.chance.random() < 0.9:
        writer.writerow(names)
    writer.writerows([row.get(name, "") for name in names] for row in rows)
    return rounds.chance.choice(("", "", "sep=,\n", "A title\n", "\n")) + text.getvalue()


def as_json(rounds: Rounds, rows: list[Row]) -> str:
    indent = rounds.chance.choice((None, 2))
    value = rounds.chance.choice((rows, {"data": rows}, rows[0] if rows else {}))
    return json.dumps(value, ensure_ascii=rounds.chance.random() < 0.5, indent=indent)


def as_lines(rounds: Rounds, rows: list[Row]) -> str:
    between = rounds.chance.choice(("\n", "\n\n", ",\n", "", "\r\n"))
    indent = rounds.chance.choice((None, None, 2))
    return between.join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows)


def as_frame(rounds: Rounds, rows: list[Row]) -> str:
    orient = rounds.chance.choice(("columns", "split", "index", "records", "values", "table"))
    return pandas.DataFrame(rows).to_json(orient=orient)


def as_workbook(rounds: Rounds, rows: list[Row]) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    book = openpyxl.Workbook()
    for _ in range(rounds.chance.choice((1, 1, 2))):
        sheet = book.create_sheet()
        sheet.append(names)
        for row in rows:
            cells = [row.get(name) for name in names]
            sheet.append([str(one) if isinstance(one, list | dict) else one for one in cells])
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def as_columnar(rounds: Rounds, rows: list[Row]) -> bytes:
    table = pyarrow.Table.from_pylist(rows)
    stream = io.BytesIO()
    if rounds.chance.random() < 0.5:
        parquet.write_table(table, stream, compression=rounds.chance.choice(("none", "zstd")))
        return stream.getvalue()
    make = rounds.chance.choice((ipc.new_stream, ipc.new_file))
    with make(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


MAKERS: tuple[Callable[[Rounds, list[Row]], str | bytes], ...] = (
    as_table, as_table, as_table, as_json, as_lines, as_lines, as_frame, as_workbook, as_columnar,
)  # fmt: skip


def content(rounds: Rounds) -> tuple[str, bytes]:
    """(how it was made, bytes) of one file."""
    while True:
        rows = [row for row in rounds.rows() if isinstance(row, dict)]
        make = rounds.chance.choice(MAKERS)
        try:
            made = make(rounds, rows)
            if isinstance(made, str):
                made = made.encode(rounds.chance.choice(ENCODINGS), "replace")
        except (ValueError, TypeError, OverflowError, pyarrow.ArrowException):
            continue  # this format does not hold these rows
        except Exception as error:  # openpyxl has an error of its own for signs it cannot write
            if type(error).__name__ != "IllegalCharacterError":
                raise
            continue
        return make.__name__, made


def faults(prepared: Prepared, folder: Path) -> list[str]:
    """What is wrong with the account of a preparation that ended well."""
    numbers = writing.write_outputs(prepared, folder, "t")
    found = []
    if numbers["rows_in"] != numbers["kept"] + sum(numbers[name] for name in ROW_KINDS.values()):
        found.append("rows_in is not the sum of where rows ended")
    written = {split: folder / f"t_{split}.jsonl" for split in SPLITS}
    lines = [line for file in written.values() if file.exists() for line in file.open("rb")]
    aside = list((folder / "t_rejected.jsonl").open("rb"))
    if len(lines) != sum(numbers["splits"].values()):
        found.append("lines written are not those that were counted")
    if len(aside) != numbers["rows_in"] - numbers["kept"]:
        found.append("rejected.jsonl has not every row that was left out")
    nested = numbers["cleaning"].get("nested_rows", 0)
    if sum(one["rows"] for one in numbers["sources"]) + nested != numbers["rows_in"]:
        found.append("rows of the sources are not the rows that came in")
    for line in lines:
        for message in json.loads(line)["messages"]:
            message["content"].encode("utf-8")
    (*map(json.loads, aside),)
    return found


class Hang(BaseException):
    """A round that took too long."""


def one_round(settings: Data, folder: Path) -> tuple[str, str]:
    """(how it ended, the fault or nothing)."""
    try:
        wrong = faults(prepare(settings, folder), folder)
        return "prepared", "; ".join(wrong)
    except SlimTuneError as error:
        silent = [part for part in (error.what, error.why, error.cure) if not part.strip()]
        if error.exit_code not in (2, 3):
            return f"exit {error.exit_code:d}", str(error)
        return f"exit {error.exit_code:d}", "an error without words" if silent else ""
    except Hang:
        return "hang", f"more than {ROUND_SECONDS} s"
    except Exception:
        return "exit 1", traceback.format_exc()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data_report.plot = lambda numbers, file: None  # a second each, and no reader
    rounds, ends, findings = Rounds(options.seed), Counter(), Counter()
    begun = time.monotonic()

    def late(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    while time.monotonic() - begun < options.seconds:
        made, data = content(rounds)
        if rounds.chance.random() < 0.75:
            data = rounds.mutated(data)
        if rounds.chance.random() < 0.1:
            data = gzip.compress(data)
            data = rounds.mutated(data) if rounds.chance.random() < 0.3 else data
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "rows"
            file.write_bytes(data)
            try:
                settings = rounds.settings(file)
            except ValidationError:
                continue
            signal.alarm(ROUND_SECONDS)
            end, fault = one_round(settings, Path(name))
            signal.alarm(0)
            ends[f"{made}: {end}"] += 1
            if fault:
                kind = fault.strip().splitlines()[-1][:100]
                findings[kind] += 1
                if findings[kind] == 1:
                    print(f"--- {made}, {settings.model_dump(exclude_defaults=True)}\n{fault}")
                    if options.keep:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file, options.keep / f"{len(findings):03}")
    for end, count in sorted(ends.items()):
        print(f"{count:7,}  {end}")
    print(f"{ends.total():,} files in {time.monotonic() - begun:.0f} s, {findings.total()} faults")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
