"""Preparation accounts for every row: nothing lost, nothing twice, no question in two splits."""

import json
import random
from pathlib import Path

import pytest

from slimtune.console import InputError, SettingsError
from slimtune.data.cleaning import without_leaks
from slimtune.data.preparation import prepare, write
from slimtune.data.rows import read_rows
from slimtune.data.splits import prompt_key

INSTRUCT = Path(__file__).parents[4] / "shared" / "data" / "instruct"


def alpaca_row(i: int, **more) -> dict:
    return {"instruction": f"Question {i}?", "input": "", "output": f"Answer {i}.", **more}


def saved(folder: Path, rows: list[dict], name: str = "raw.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_messy_rows_add_up(tmp_path):
    """A property: whatever the mess, rows in = kept + rejected + duplicates + leaks."""
    chance = random.Random(3)
    mess = [
        {"output": "x"},
        {"instruction": "x"},
        alpaca_row(1, output=" "),
        alpaca_row(2, output=[]),
    ]
    for trial in range(10):
        rows = [alpaca_row(i) for i in range(60)]
        rows += chance.choices(mess, k=chance.randrange(30))
        rows += [
            alpaca_row(i, instruction=f"  QUESTION {i}？") for i in chance.sample(range(60), 9)
        ]
        rows += [alpaca_row(i, output="Else.", fact=f"f{i}") for i in range(15)]
        chance.shuffle(rows)
        numbers = prepare(saved(tmp_path, rows), group_column="fact", seed=trial).numbers
        parts = [numbers[name] for name in ("kept", "rejected", "duplicates", "leaks")]
        assert numbers["rows_in"] == len(rows) == sum(parts)
        assert numbers["duplicates"] == 9
        assert sum(numbers["reasons"].values()) == numbers["rejected"]
        assert sum(numbers["splits"].values()) == sum(numbers["languages"].values()) == parts[0]


def test_no_question_in_two_splits_even_with_groups(tmp_path):
    rows = [alpaca_row(i % 50, output=f"{i}", fact=f"fact {i}") for i in range(300)]
    prepared = prepare(saved(tmp_path, rows), group_column="fact", ratios=(0.6, 0.2, 0.2))
    asked = [{prompt_key(row["messages"]) for row in rows} for rows in prepared.splits.values()]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert prepared.numbers["leaks"] == sum(one["kind"] == "leak" for one in prepared.rejected) > 0


def test_a_leak_costs_the_less_precious_split_its_row():
    def rows(*questions):
        return [{"messages": [{"role": "user", "content": text}]} for text in questions]

    clean, leaked = without_leaks(
        {
            "train": rows("a", "b", "c ", "d"),
            "validation": rows("C", "e"),
            "test": rows("E", "a"),
        }
    )
    assert clean == {"train": rows("b", "d"), "validation": rows("C"), "test": rows("E", "a")}
    assert leaked == rows("e", "a", "c ")


def test_groups_stay_together(tmp_path):
    rows = [alpaca_row(i, fact=f"fact {i % 40}") for i in range(400)]
    prepared = prepare(saved(tmp_path, rows), group_column="fact", ratios=(0.6, 0.2, 0.2))
    facts = [{row["fact"] for row in rows} for rows in prepared.splits.values()]
    assert sum(map(len, facts)) == 40 and all(facts)


def test_adding_rows_never_moves_old_ones(tmp_path):
    rows = [alpaca_row(i) for i in range(200)]
    before = prepare(saved(tmp_path, rows)).splits
    after = prepare(saved(tmp_path, [alpaca_row(1000), *rows, alpaca_row(1001)])).splits
    for name in before:
        assert {row["id"] for row in before[name]} <= {row["id"] for row in after[name]}


def test_written_files_and_their_rows(tmp_path):
    rows = [*[alpaca_row(i) for i in range(100)], alpaca_row(5), {"instruction": "no answer"}]
    prepared = prepare(saved(tmp_path, rows))
    paths = write(prepared, tmp_path / "out", "mine")
    assert {path.name for path in paths} == {
        *(f"mine_{split}.jsonl" for split in ("train", "validation", "test")),
        *("rejected.jsonl", "data_report.json", "data_report.md", "data_report.png"),
    }
    for split, kept in prepared.splits.items():
        assert read_rows(tmp_path / f"out/mine_{split}.jsonl") == kept
    first = prepared.splits["train"][0]
    question = first["messages"][0]["content"]
    line = first["source"]["line"]
    assert first["source"] == {"file": "raw.jsonl", "line": line}
    assert rows[line - 1]["instruction"] == question == first["instruction"]
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").open()]
    assert [(one["line"], one["kind"]) for one in rejected] == [
        (101, "duplicate"),
        (102, "rejected"),
    ]
    assert rejected[0]["reason"] == "same as line 6" and rejected[1]["reason"] == 'no "output"'
    numbers = json.loads((tmp_path / "out/data_report.json").read_text())
    assert numbers == prepared.numbers
    markdown = (tmp_path / "out/data_report.md").read_text()
    assert "| rows in | 102 |" in markdown and '| no "output" | 1 |' in markdown


def test_half_a_character_is_set_aside_and_written(tmp_path):
    rows = [alpaca_row(i) for i in range(20)] + [alpaca_row(99, output="\ud83d")]
    prepared = prepare(saved(tmp_path, rows))
    write(prepared, tmp_path / "out", "mine")
    rejected = json.loads((tmp_path / "out/rejected.jsonl").read_text(encoding="utf-8"))
    assert rejected["row"] == rows[-1]


def test_token_numbers(tmp_path):
    def encode(messages):
        length = int(messages[0]["content"].split()[1].rstrip("?")) + 1
        labels = [-100] * (length - 1) + [7]
        return {"input_ids": [7] * length, "labels": labels} if length <= 100 else None

    rows = [alpaca_row(i) for i in range(101)]
    tokens = prepare(saved(tmp_path, rows), encode=encode).numbers["tokens"]
    assert tokens["total"] == 5050
    assert [tokens[name] for name in ("p50", "p90", "p99", "max")] == [50, 90, 99, 100]
    assert tokens["supervised_share"] == pytest.approx(100 / 5050, abs=1e-4)


def test_max_rows(tmp_path):
    assert (
        prepare(saved(tmp_path, [alpaca_row(i) for i in range(50)]), max_rows=20).numbers["rows_in"]
        == 20
    )


def test_refusals(tmp_path):
    texts = saved(tmp_path, [{"text": "a", "label": "b"}])
    with pytest.raises(InputError, match="columns found: text, label"):
        prepare(texts)
    with pytest.raises(InputError, match='as qa: no "question"; columns found: instruction'):
        prepare(saved(tmp_path, [alpaca_row(1)]), format_type="qa")
    with pytest.raises(SettingsError, match="format type 'alpacca'"):
        prepare(texts, format_type="alpacca")
    with pytest.raises(InputError, match="no row left to train on"):
        prepare(saved(tmp_path, [alpaca_row(1)]), ratios=(0.0, 0.5, 0.5))


def test_read_rows_takes_plain_rows_and_names_the_bad_line(tmp_path):
    plain = read_rows(saved(tmp_path, [alpaca_row(1, source="a book"), alpaca_row(2)]))
    assert plain[0]["source"] == {"file": "raw.jsonl", "line": 1}
    assert plain[1]["messages"][1] == {"role": "assistant", "content": "Answer 2."}
    with pytest.raises(InputError, match=r"raw.jsonl:2: not usable") as caught:
        read_rows(saved(tmp_path, [alpaca_row(1), {"instruction": "x"}]))
    assert "prepare_data.py" in caught.value.cure


@pytest.mark.parametrize(
    ("name", "shape", "rows_in", "duplicates"),
    [
        ("alpaca_en_demo.json", "alpaca", 999, 14),
        ("alpaca_zh_demo.json", "alpaca", 1000, 8),
        ("identity.json", "alpaca", 91, 0),
        ("gsm8k_train.jsonl", "qa", 7473, 0),
        ("huatuo_llama_data.json", "alpaca", 8658, 0),
        ("fastchat_sharegpt_dummy.json", "sharegpt", 500, 0),
    ],
)
def test_real_files(name, shape, rows_in, duplicates):
    if not INSTRUCT.is_dir():
        pytest.skip("needs ../shared/data/instruct")
    numbers = prepare(INSTRUCT / name).numbers
    assert (numbers["format"], numbers["rows_in"], numbers["duplicates"]) == (
        shape,
        rows_in,
        duplicates,
    )
    assert numbers["kept"] == rows_in - duplicates
