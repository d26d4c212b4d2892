"""Files laid out as public data sets are: every row kept, or counted among those left out.

Each layout is written here from the sample's rows; the originals are read where they are there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from originals import DATA, originals

from slimtune import sample
from slimtune.config.data import Data
from slimtune.data.preparation import prepare

ROWS = sample.rows(seed=3, count=120)
Row = dict[str, Any]


def alpaca(row: Row) -> Row:
    return {name: row[name] for name in ("instruction", "input", "output")}


def asked(row: Row) -> str:
    return f"{row['instruction']} {row['input']}".strip()


def turns(row: Row) -> Row:
    """ShareGPT, as FastChat has it: greetings about the question."""
    told = [asked(row), row["output"], "Goodbye", "Goodbye!"]
    who = ["human", "gpt"] * 2
    said = [{"from": one, "value": text} for one, text in zip(who, told, strict=True)]
    return {"id": row["fact"], "conversations": said}


def nested(row: Row) -> Row:
    """Self-Instruct: the instruction once, its inputs and outputs in a list."""
    one = {"input": row["input"], "output": row["output"]}
    told = {"id": "task", "name": row["family"], "instruction": row["instruction"]}
    return told | {"instances": [one], "is_classification": False}


def lists(row: Row) -> Row:
    """Chinese-Vicuna: a list of what was asked, one of what was answered."""
    return {"input": [asked(row), "真的吗？"], "output": [row["output"], "真的。"]}


def array(rows: list[Row]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=2)


def lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


TWICE = [*ROWS, *ROWS[:7]]
UNSAID = {"instruction": "这种病能根治吗？", "input": "", "output": "无"}
NAMED = [
    {"instruction": f"hello {n}", "input": "", "output": "I am {{name}} of {{author}}."}
    for n in range(9)
]
GSM = [{"question": asked(row), "answer": f"<<1+1=2>>\n#### {row['output']}"} for row in ROWS]

# name: (its text, the shape it is, its rows, how many of them are left out)
WRITTEN: dict[str, tuple[str, str, int, int]] = {
    "alpaca, some twice.json": (array([alpaca(row) for row in TWICE]), "alpaca", 127, 7),
    "alpaca, a line each.json": (
        lines([*map(alpaca, ROWS), UNSAID]), "alpaca", 121, 1,  # an answer of nothing but "none"
    ),
    "placeholders.json": (array(NAMED), "alpaca", 9, 0),
    "gsm8k.jsonl": (lines(GSM), "qa", 120, 0),
    "sharegpt.json": (array([turns(row) for row in ROWS]), "sharegpt", 120, 0),
    "self instruct.jsonl": (lines([nested(row) for row in ROWS]), "alpaca", 120, 0),
    "chinese vicuna.jsonl": (lines([lists(row) for row in ROWS]), "alpaca", 120, 0),
}  # fmt: skip
ORIGINALS: dict[str, tuple[str, int, int]] = {
    "alpaca_en_demo.json": ("alpaca", 999, 14),
    "alpaca_zh_demo.json": ("alpaca", 1000, 8),
    "identity.json": ("alpaca", 91, 0),
    "gsm8k_train.jsonl": ("qa", 7473, 0),
    "huatuo_llama_data.json": ("alpaca", 8658, 1),  # one answer is only "无"
    "fastchat_sharegpt_dummy.json": ("sharegpt", 500, 0),
    "self_instruct_seed_tasks.jsonl": ("alpaca", 175, 0),
    "chinese_vicuna_chat_sample.jsonl": ("alpaca", 3, 0),
}


@pytest.fixture
def file_of(tmp_path) -> Callable[[str], tuple[Path, str, int, int]]:
    def written(name: str) -> tuple[Path, str, int, int]:
        if name in ORIGINALS:
            return DATA / "instruct" / name, *ORIGINALS[name]
        text, *told = WRITTEN[name]
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name, *told

    return written


@pytest.mark.parametrize("name", [*WRITTEN, *originals("instruct", *ORIGINALS)])
def test_every_row_is_kept_or_counted(name, file_of):
    file, shape, rows_in, left_out = file_of(name)
    judged = prepare(Data(input=file))
    assert judged.sources[0]["shape"] == shape and judged.sources[0]["rows"] == rows_in
    assert judged.counts()["left out"] == left_out
    text = file.read_text(encoding="utf-8")
    there = len(json.loads(text)) if text.startswith("[") else text.count("\n")
    assert sum(judged.counts().values()) == rows_in and there in (rows_in, rows_in - 1)
