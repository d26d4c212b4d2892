"""Preparation accounts for every row: nothing lost, nothing twice, no question in two splits."""

import csv
import gzip
import io
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from prepared_rows import SPLITS, Output, alpaca_row, saved
from pyarrow import parquet

from slimtune.config.data import Data
from slimtune.data import blocks
from slimtune.data.preparation import prepare
from slimtune.data.rows import read_rows
from slimtune.data.similarity import keys_of
from slimtune.errors import InputError, SettingsError

MESS = [
    {"output": "x"},
    {"instruction": "x"},
    {"instruction": "a", "output": " "},
    {"instruction": "b", "output": {}},
    {"instruction": "c", "output": "half \ud83d"},
    "not json",
    "[1, 2]",
    '"text"',
    '{"instruction": "cut off", "outp',
]


def mixed_up(text: str, chance: random.Random) -> str:
    """The same text to a reader: other case, width of digits, spaces, punctuation."""
    wide = str.maketrans("0123456789?", "０１２３４５６７８９？")
    changes = [str.upper, lambda t: t.translate(wide), lambda t: f"  {t.replace(' ', '   ')}"]
    changes += [lambda t: t.rstrip("?.") + " !", lambda t: f"“{t}”…"]
    for change in chance.sample(changes, chance.randrange(1, 4)):
        text = change(text)
    return text


def written(file: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize("trial", range(8))
def test_messy_rows_add_up(tmp_path, trial, monkeypatch):
    """A property: whatever the mess, each row ends in one place and is counted there."""
    chance = random.Random(trial)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", chance.choice([50, 500, 1 << 20]))
    rows = [alpaca_row(i) for i in range(60)]
    bad = chance.choices(MESS, k=chance.randrange(30))
    exact = [alpaca_row(i) for i in chance.sample(range(60), 5)]
    near = [
        alpaca_row(i, instruction=mixed_up(f"Question {i}?", chance))
        for i in chance.sample(range(60), 9)
    ]
    other = [alpaca_row(i, output="Else.", fact=f"f{i}") for i in range(15)]
    rows += [*bad, *exact, *near, *other]
    chance.shuffle(rows)
    out = Output(written(tmp_path / "raw", rows), seed=trial)
    assert out.adds_up()
    numbers = out.numbers
    assert numbers["rows_in"] == len(rows) and numbers["rejected"] == len(bad)
    assert numbers["duplicates"] + numbers["near_duplicates"] == 14
    assert numbers["sources"][0]["rows"] == len(rows)
    lines = {one["line"] for one in out.rejected} | {row["source"]["line"] for row in out.rows}
    assert lines == set(range(1, len(rows) + 1))


def test_the_same_rows_give_the_same_bytes_however_they_come(tmp_path):
    rows = [alpaca_row(i, output=f"答案 {i}，\n“好”") for i in range(40)] + [alpaca_row(3)] * 2
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = {}
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        table[name] = text.getvalue()
    arrow = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), arrow)
    crlf = table["csv"].replace("\n", "\r\n")
    forms = {
        "utf8": lines.encode(),
        "bom": lines.encode("utf-8-sig"),
        "gbk": lines.encode("gbk"),
        "utf16": lines.encode("utf-16"),
        "utf16le": lines.encode("utf-16-le"),
        "utf16be": lines.encode("utf-16-be"),
        "crlf": lines.replace("\n", "\r\n").encode(),
        "array": json.dumps(rows, indent=3, ensure_ascii=False).encode(),
        "flat": json.dumps(rows).encode("gbk"),
        "csv": table["csv"].encode("gbk"),
        "csv crlf": crlf.encode("utf-8-sig"),
        "tsv": table["tsv"].encode(),
        "parquet": arrow.getvalue(),
        "gz": gzip.compress(lines.encode("gbk")),
    }
    outputs = {}
    for form, data in forms.items():
        folder = tmp_path / form
        folder.mkdir()
        (folder / "rows").write_bytes(data)
        out = Output(folder / "rows")
        assert out.adds_up() and out.numbers["rows_in"] == 42
        outputs[form] = {name: data for name, data in out.files.items() if "rejected" not in name}
        folder_of_one = tmp_path / form
        assert Output(folder_of_one).files == out.files
    assert all(files == outputs["utf8"] for files in outputs.values())
    assert set(outputs["utf8"]) == {f"train_{split}.jsonl" for split in SPLITS}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 400)
    rows = [alpaca_row(i % 90) for i in range(150)] + [{"instruction": "no answer"}] * 3
    file = saved(tmp_path, rows)
    one, many = (Output(file, workers=count, fit=fit) for count in (1, workers))
    assert one.files == many.files and one.numbers == many.numbers


def test_planted_near_duplicates_and_leaks_leave_training(tmp_path):
    chance = random.Random(5)
    rows = [alpaca_row(i) for i in range(100)]
    near = [alpaca_row(i, instruction=mixed_up(f"Question {i}?", chance)) for i in range(40)]
    test = [
        alpaca_row(i, instruction=mixed_up(f"Question {i}?", chance), output="Otherwise.")
        for i in range(50, 80)
    ]
    file = saved(tmp_path, rows + near)
    out = Output(file, test_input=saved(tmp_path, test, "test.jsonl"), validation_ratio=0.1)
    assert out.adds_up()
    assert (out.numbers["near_duplicates"], out.numbers["leaks"]) == (40, 30)
    assert len(out.splits["test"]) == 30
    asked = [{keys_of(row["messages"]).question for row in out.splits[name]} for name in SPLITS]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    kept = Output(file, test_input=tmp_path / "test.jsonl", drop_leaks=False, duplicates="keep")
    assert len(kept.rows) == 170 and not kept.rejected


def test_a_test_file_that_repeats_training_rows_keeps_them(tmp_path):
    rows = [alpaca_row(i) for i in range(30)]
    test = saved(tmp_path, rows[:9], "test.jsonl")
    out = Output(saved(tmp_path, rows), test_input=test, validation_input=test)
    assert [len(out.splits[split]) for split in SPLITS] == [21, 0, 9]
    assert out.numbers["leaks"] == 18 and "train_validation.jsonl" not in out.files
    assert {row["source"]["file"] for row in out.splits["test"]} == {"test:test.jsonl"}


def test_fixed_counts_take_whole_questions_and_hardly_move(tmp_path):
    rows = [alpaca_row(i) for i in range(300)]
    before = Output(saved(tmp_path, rows), test_rows=40, validation_rows=20)
    assert [len(before.splits[split]) for split in SPLITS] == [240, 20, 40]
    after = Output(saved(tmp_path, rows + [alpaca_row(999)]), test_rows=40, validation_rows=20)
    old = {row["id"] for row in before.splits["test"]}
    assert len(old - {row["id"] for row in after.splits["test"]}) <= 1
    assert not {row["id"] for row in before.splits["train"]} & {
        row["id"] for row in after.splits["test"]
    }
    twins = [alpaca_row(i // 2, output=str(i)) for i in range(100)]
    assert len(Output(saved(tmp_path, twins), test_rows=11).splits["test"]) == 12


def test_no_question_in_two_splits_even_with_groups(tmp_path):
    rows = [alpaca_row(i % 50, output=f"{i}", fact=f"fact {i}") for i in range(300)]
    out = Output(saved(tmp_path, rows), validation_ratio=0.2, test_ratio=0.2)
    asked = [{keys_of(row["messages"]).question for row in out.splits[name]} for name in SPLITS]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert out.numbers["leaks"] == sum(one["kind"] == "leak" for one in out.rejected) > 0


def test_groups_stay_together(tmp_path):
    rows = [alpaca_row(i, fact=f"fact {i % 40}") for i in range(400)]
    out = Output(saved(tmp_path, rows), validation_ratio=0.2, test_ratio=0.2)
    facts = [{row["fact"] for row in rows} for rows in out.splits.values()]
    assert sum(map(len, facts)) == 40 and all(facts)


def test_adding_rows_never_moves_old_ones(tmp_path):
    rows = [alpaca_row(i) for i in range(200)]
    before = Output(saved(tmp_path, rows)).splits
    after = Output(saved(tmp_path, [alpaca_row(1000), *rows, alpaca_row(1001)])).splits
    for name in before:
        assert {row["id"] for row in before[name]} <= {row["id"] for row in after[name]}


def test_written_rows_and_reasons(tmp_path):
    rows = [*[alpaca_row(i) for i in range(100)], alpaca_row(5), {"instruction": "no answer"}]
    rows += [alpaca_row(6, instruction="QUESTION 6")]
    out = Output(saved(tmp_path, rows))
    first = out.splits["train"][0]
    assert first["source"] == {"file": "raw.jsonl", "line": 2}
    assert rows[1]["instruction"] == first["messages"][0]["content"] == first["instruction"]
    assert [(one["line"], one["kind"], one["reason"]) for one in out.rejected] == [
        (101, "duplicate", "same as line 6"),
        (102, "rejected", 'no "output"'),
        (103, "near_duplicate", "same as line 7"),
    ]
    assert out.rejected[1]["row"] == rows[101]
    assert Output(saved(tmp_path, rows), duplicates="exact").numbers["near_duplicates"] == 0


def test_read_rows_returns_what_was_written(tmp_path):
    out = Output(saved(tmp_path, [alpaca_row(i, instances=[1]) for i in range(30)]))
    (tmp_path / "again.jsonl").write_bytes(out.files["train_train.jsonl"])
    assert read_rows(tmp_path / "again.jsonl") == out.splits["train"]


def test_half_a_character_is_set_aside_and_written(tmp_path):
    rows = [alpaca_row(i) for i in range(20)] + [alpaca_row(99, output="\ud83d")]
    assert Output(saved(tmp_path, rows)).rejected[0]["row"] == rows[-1]


def test_special_tokens_entities_and_mojibake_are_counted(tmp_path):
    texts = [
        "</s> stop [INST]",
        "AT&amp;T",
        "cafÃ© noir",
        "锟斤拷",
        "a <b> [x] 1 << 2",
        "<|im_end|>",
    ]
    rows = [alpaca_row(i, output=text) for i, text in enumerate(texts)]
    file = saved(tmp_path, rows)
    out = Output(file, test_ratio=0, validation_ratio=0)
    assert out.numbers["cleaning"] == {"special_tokens": 2, "html_entities": 1, "mojibake": 2}
    answers = [row["messages"][-1]["content"] for row in out.rows]
    assert answers == ["< /s> stop [ INST]", *texts[1:5], "< |im_end|>"]
    assert out.rows[0]["output"] == answers[0]
    off = {"neutralise_special_tokens": False, "inspect_texts": False, "test_ratio": 0}
    out = Output(file, validation_ratio=0, **off)
    assert [row["output"] for row in out.rows] == texts and not out.numbers["cleaning"]


def test_conversations_are_trimmed_to_whole_exchanges_or_rejected(tmp_path):
    said = [{"from": "gpt", "value": "Hi"}, {"from": "Human", "value": "a"}]
    said += [{"from": "ChatGPT", "value": "b"}, {"from": "human", "value": "c"}]
    rows = [{"conversations": said}, {"conversations": said[1:3] * 2}, {"conversations": said[:2]}]
    file = saved(tmp_path, rows)
    out = Output(file, test_ratio=0, validation_ratio=0)
    assert [len(row["messages"]) for row in out.rows] == [2, 4]
    assert out.numbers["cleaning"] == {"trimmed_turns": 1} and out.numbers["rejected"] == 1
    strict = Output(file, trim_turns=False, test_ratio=0, validation_ratio=0, max_bad_rows=2)
    assert strict.numbers["rejected"] == 2


def fit(messages: list[dict], place: str) -> SimpleNamespace:
    """A limit of 100 tokens: the number in the question counts; over 100 as the numbers say."""
    length = int(messages[0]["content"].split()[1].rstrip("?")) + 1
    one = {"input_ids": [7] * length, "labels": [-100] * (length - 1) + [7]}
    half = {"input_ids": [7] * 50, "labels": [7] * 50}
    if length <= 100:
        return SimpleNamespace(conversations=[messages], encoded=[one], how="whole", reason="")
    if length == 102:
        return SimpleNamespace(
            conversations=[messages] * 2, encoded=[half] * 2, how="split", reason=""
        )
    if length == 103:
        return SimpleNamespace(conversations=[messages], encoded=[half], how="shortened", reason="")
    if length == 104:
        raise InputError(f"{place}: too long", "the policy is error", "raise the limit")
    return SimpleNamespace(conversations=[], encoded=[], how="dropped", reason=f"{length} tokens")


fit.shown = lambda messages: [(f"[{m['content']}]", m["role"] == "assistant") for m in messages]


def test_long_rows_are_kept_split_shortened_or_set_aside(tmp_path):
    settings = {"test_ratio": 0, "validation_ratio": 0, "fit": fit}
    rows = [alpaca_row(i) for i in range(103)]
    out = Output(saved(tmp_path, rows), **settings)
    assert out.numbers["kept"] == 102
    tokens = out.numbers["tokens"]
    assert out.numbers["too_long"] == 1 and tokens["total"] == 5050 + 150
    assert out.rejected[0]["kind"] == "too_long" and out.rejected[0]["reason"] == "101 tokens"
    assert out.numbers["long_rows"] == {"whole": 100, "split": 1, "shortened": 1}
    pieces = [row["id"] for row in out.rows if row["source"]["line"] == 102]
    assert len(pieces) == 2 and [one.rsplit("-")[1] for one in pieces] == ["1", "2"]
    with pytest.raises(InputError, match="raw.jsonl, row 104: too long"):
        Output(saved(tmp_path, [alpaca_row(i) for i in range(104)]), **settings)


def test_bad_rows_stop_a_hopeless_file_only(tmp_path):
    good, bad = [alpaca_row(i) for i in range(300)], [{"instruction": "no answer"}] * 150
    out = Output(saved(tmp_path, bad + good))
    assert out.numbers["rejected"] == 150 and out.numbers["kept"] == 300
    for limit, words in (
        (0.2, "33|150 bad rows among the 450"),
        (100, "allows 100"),
        (0, "allows 0%"),
    ):
        with pytest.raises(InputError, match=words):
            Output(saved(tmp_path, bad + good), max_bad_rows=limit)
    assert Output(saved(tmp_path, bad + good), max_bad_rows=150).numbers["kept"] == 300


def test_columns_are_mapped_and_suggested(tmp_path):
    rows = [{" The  Questions": f"q{i}", "Reply": f"a{i}", "n": i} for i in range(30)]
    file = saved(tmp_path, rows)
    out = Output(file, columns="question=the questions, answer=Reply")
    assert [row["messages"][0]["content"] for row in out.rows].count("q3") == 1
    with pytest.raises(InputError, match="columns found:  The  Questions, reply, n"):
        prepare(Data(input=file))
    near = saved(tmp_path, [{"my_question": "a", "the answer text": "b"}], "near.jsonl")
    with pytest.raises(InputError) as caught:
        prepare(Data(input=near))
    suggested = "--columns 'question=my_question,answer=the answer text'"
    assert f"did you mean {suggested}?" in str(caught.value)
    with pytest.raises(SettingsError, match="did you mean question"):
        prepare(Data(input=file, columns="qestion=Reply"))


def test_refusals(tmp_path):
    texts = saved(tmp_path, [{"text": "a", "label": "b"}])
    with pytest.raises(InputError, match="columns found: text, label"):
        prepare(Data(input=texts))
    with pytest.raises(InputError, match='as qa: row 1: no "question"; columns found: instruction'):
        prepare(Data(input=saved(tmp_path, [alpaca_row(1)]), format_type="qa"))
    with pytest.raises(InputError, match="no row left to train on"):
        prepare(Data(input=saved(tmp_path, [alpaca_row(1)]), test_rows=5))
    with pytest.raises(InputError, match="raw:1: cannot be read"):
        prepare(Data(input=written(tmp_path / "raw", ['{"a": 1', '{"b'])))


def test_read_rows_takes_plain_rows_and_names_the_bad_line(tmp_path):
    plain = read_rows(saved(tmp_path, [alpaca_row(1, source="a book"), alpaca_row(2)]))
    assert plain[0]["source"] == {"file": "raw.jsonl", "line": 1}
    assert plain[1]["messages"][1] == {"role": "assistant", "content": "Answer 2."}
    with pytest.raises(InputError, match=r"raw.jsonl:2: not usable") as caught:
        read_rows(saved(tmp_path, [alpaca_row(1), {"instruction": "x"}]))
    assert "prepare_data.py" in caught.value.cure


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_deep_in_an_object_are_named(tmp_path, indent):
    whole = {"version": 1, "rows": [alpaca_row(1), alpaca_row(2)]}
    (tmp_path / "all.json").write_text(json.dumps(whole, indent=indent))
    with pytest.raises(InputError, match="columns found: version, rows") as caught:
        prepare(Data(input=tmp_path / "all.json"))
    assert caught.value.cure.endswith("""jq '."rows"' all.json > rows.json""")
