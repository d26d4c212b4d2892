"""Situations that people report, one by one: the rows as they meant them, or words that help.

Each stands for a kind of fault; test_situations.py has more, a small file each.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from slimtune.config.data import Data
from slimtune.data.preparation import Prepared, prepare
from slimtune.data.rows import read_rows
from slimtune.data.writing import closing_numbers, write_outputs
from slimtune.errors import SlimTuneError


def prepared(file: Path, **settings: Any) -> Prepared:
    """All usable rows of a file in the training split."""
    return prepare(Data(input=file, validation_ratio=0, test_ratio=0, **settings))


def pairs(file: Path, **settings: Any) -> list[tuple[str, str]]:
    """(last question, last answer) of each kept row."""
    rows = prepared(file, **settings).rows("train")
    return [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in rows]


def refusal(file: Path, **settings: Any) -> str:
    with pytest.raises(SlimTuneError) as caught:
        prepared(file, **settings)
    assert caught.value.exit_code in (2, 3)
    return str(caught.value)


def write(folder: Path, content: str | bytes, name: str = "rows") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- values that are no text --------------------------------------------------------------------


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_not_a_number_is_nothing(tmp_path, word) -> None:
    rows = '[{"instruction": "a", "input": %s, "output": "b"}, {"instruction": %s, "output": "c"},'
    file = write(tmp_path, rows % (word, word) + '{"instruction": "d", "output": "e"}]')
    assert pairs(file) == [("a", "b"), ("d", "e")]


@pytest.mark.parametrize(
    ("values", "answers"),
    [
        ([2.0, None, 1990.0], ["2", "1990"]),
        ([2.0, 2.5, None], ["2.0", "2.5"]),
        ([2.0, 3, None], ["2.0", "3"]),
        ([2.5, 7], ["2.5", "7"]),
        ([-0.0, 1e30], ["-0.0", "1e+30"]),
        ([2.0, 3.0], ["2", "3"]),
    ],
)
def test_whole_numbers_lose_the_point_that_a_gap_gave_them(tmp_path, values, answers) -> None:
    rows = [{"question": f"how many {n}?", "answer": one} for n, one in enumerate(values)]
    file = write(tmp_path, lines(*rows))
    assert [answer for _, answer in pairs(file)] == answers
    if None not in values:
        assert [row["messages"][1]["content"] for row in read_rows(file)] == answers


@pytest.mark.parametrize(
    ("cells", "answers"),
    [
        (["2.0", "", "1990.0"], ["2", "1990"]),
        (["2.0", "nan", "-7.0"], ["2", "-7"]),
        (["2.0", "", "2.5"], ["2.0", "2.5"]),
        (["2.0", "", "about 3"], ["2.0", "about 3"]),
        (["2.0", "3.0"], ["2.0", "3.0"]),  # versions, for all that is known
    ],
)
def test_so_do_those_of_a_table_with_a_gap(tmp_path, cells, answers) -> None:
    table = "question,answer\n" + "".join(f"q{n},{cell}\n" for n, cell in enumerate(cells))
    assert [answer for _, answer in pairs(write(tmp_path, table))] == answers


def test_a_late_fraction_keeps_a_whole_column_as_it_is(tmp_path) -> None:
    cells = ["2.0"] * 500 + ["", "2.5"]
    table = "question,answer\n" + "".join(f"q{n},{cell}\n" for n, cell in enumerate(cells))
    assert {answer for _, answer in pairs(write(tmp_path, table))} == {"2.0", "2.5"}


def test_true_and_false_are_answers(tmp_path) -> None:
    file = write(tmp_path, lines({"question": "a?", "answer": True}))
    assert pairs(file) == [("a?", "true")]


@pytest.mark.parametrize("word", ["nan", "None", "NULL", "N/A", "#N/A", "#REF!", "无"])
def test_what_stands_for_no_value_is_no_answer(tmp_path, word) -> None:
    table = f"question,answer\nq1,{word}\nq2,so\nq3,it is {word}\n"
    found = prepared(write(tmp_path, table))
    assert len(found.rows("train")) == 2 and list(found.reasons.values()) == [1]
    assert len(pairs(tmp_path / "rows", placeholders="keep")) == 3


# --- nothing is dropped without a word ----------------------------------------------------------


@pytest.mark.parametrize("name", ["context", "passage", "background", "背景"])
def test_the_passage_of_a_question_reaches_the_prompt(tmp_path, name) -> None:
    file = write(tmp_path, lines({name: "Ada did it.", "question": "Who?", "answer": "Ada"}))
    assert pairs(file) == [("Who?\n\nAda did it.", "Ada")]


def test_columns_that_nothing_reads_are_named(tmp_path) -> None:
    table = "question,answer,note,more\na,b,long text,\nc,d,other,x\n"
    found = prepared(write(tmp_path, table))
    assert found.unused == {
        "note": {"filled": 1.0, "characters": 7},
        "more": {"filled": 0.5, "characters": 1},
    }


@pytest.mark.parametrize(("language", "title"), [("en", "not used"), ("zh", "没有用到的列")])
def test_the_report_and_the_last_lines_name_them_too(tmp_path, language, title) -> None:
    found = prepared(write(tmp_path, "question,answer,note\na,b,long text\n"))
    (tmp_path / "out").mkdir()
    numbers = write_outputs(found, tmp_path / "out", "train", language=language)
    report = (tmp_path / "out/data_report.md").read_text("utf-8")
    assert title in report and "| note | 100.0% | 9 |" in report
    closing = closing_numbers(numbers, "train", 512)
    assert closing["columns not used"] == "note (100% filled, 9 characters)"


def test_an_answer_of_weight_0_is_kept_and_marked(tmp_path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    turns += [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]
    found = prepared(write(tmp_path, lines({"messages": turns}, {"messages": turns[:2]})))
    (row,) = found.rows("train")
    assert [one.get("weight") for one in row["messages"]] == [None, 0, None, None]
    assert list(found.reasons) == ["every answer has weight 0: nothing is to be learned"]


@pytest.mark.parametrize("name", ["tool_calls", "function_call", "reasoning_content"])
def test_what_no_template_writes_costs_its_row(tmp_path, name) -> None:
    said = {"role": "assistant", "content": "b", name: [{"name": "f"}]}
    asked, plain = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    found = prepared(
        write(tmp_path, lines({"messages": [asked, said]}, {"messages": [asked, plain]}))
    )
    assert list(found.reasons) == [f'a turn has "{name}", which no template writes']


def test_tools_of_a_row_cost_it(tmp_path) -> None:
    row = {"question": "a", "answer": "b"}
    found = prepared(write(tmp_path, lines(row, row | {"question": "c", "tools": [{"name": "f"}]})))
    assert list(found.reasons) == ['"tools" stand in the row, which no template writes']


@pytest.mark.parametrize("empty", ["", "[]", " ", [], None])
def test_no_tools_cost_nothing(tmp_path, empty) -> None:
    """LLaMA-Factory's ShareGPT files have the empty list as text."""
    told = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    found = prepared(write(tmp_path, lines({"conversations": told, "system": "", "tools": empty})))
    assert not found.reasons


_ASKED = [{"from": "human", "value": "a"}]
_PREFERENCE = {"chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    "rows",
    [
        [{"instruction": "a"} | _PREFERENCE, {"instruction": "e", "output": "d"}],
        [
            {"conversations": _ASKED} | _PREFERENCE,
            {"conversations": [*_ASKED, {"from": "gpt", "value": "d"}]},
        ],
    ],
    ids=["alpaca", "sharegpt"],
)
def test_a_preference_is_named(tmp_path, rows) -> None:
    found = prepared(write(tmp_path, lines(*rows)))
    assert list(found.reasons) == [
        '"chosen" and "rejected" are a preference; here rows have one answer'
    ]


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_stray_quote_swallows_nothing(tmp_path, delimiter) -> None:
    cells = [f"Item {n}?,It is {n}" for n in range(6)]
    cells[1], cells[4] = 'Item 1?,"Yes', 'Item 4?,No"'
    table = "\n".join(["question,answer", *cells]).replace(",", delimiter) + "\n"
    found = prepared(write(tmp_path, table))
    assert found.counts()["train"] + found.reasons.total() == 6
    kept = {row["messages"][0]["content"] for row in found.rows("train")}
    assert kept >= {"Item 0?", "Item 2?", "Item 3?", "Item 5?"}


def test_a_text_over_several_lines_stays_one(tmp_path) -> None:
    table = 'question,answer\na,"one, two,\nthree"\nb,"four\n\nfive, six"\n'
    assert pairs(write(tmp_path, table)) == [("a", "one, two,\nthree"), ("b", "four\n\nfive, six")]


def test_a_header_that_stands_twice(tmp_path) -> None:
    said = refusal(write(tmp_path, "question,answer,answer\na,b,c\n"))
    assert "'answer' twice" in said and "columns 2 and 3" in said
    found = prepared(write(tmp_path, '{"question": "a", "answer": "b", "answer": "c"}\n' * 1
                           + lines({"question": "d", "answer": "e"})))  # fmt: skip
    assert list(found.reasons) == ['"answer" stands twice in the row']


def test_files_put_one_behind_the_other(tmp_path) -> None:
    table = "\ufeffquestion,answer\na,b\n"
    found = prepared(write(tmp_path, table + table.replace("a,b", "c,d")))
    assert len(found.rows("train")) == 2
    assert list(found.reasons) == ["the header once more: files put one behind the other"]
    glued = (
        lines({"question": "a", "answer": "b"}) + "\ufeff" + lines({"question": "c", "answer": "d"})
    )
    assert pairs(write(tmp_path, glued)) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    "above", ["sep=;\n", "Our questions 2024;;\n", "Our questions;;\n;;\n", "\n", "SEP=;\r\n"]
)
def test_what_stands_above_a_header(tmp_path, above) -> None:
    file = write(tmp_path, above + "question;answer;n\na;b, c;1\nd;e;2\n")
    assert pairs(file) == [("a", "b, c"), ("d", "e")]


HEADLESS = [
    "怎么退货？,请在七天内寄回。\n多久到账？,三天。\n",
    '"How do I return it?","Send it back, within a week."\n"When is it paid?",In three days.\n',
    "1,How do I return it?,Send it back.\n2,When is it paid?,In three days.\n",
]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("table", HEADLESS)
def test_a_table_without_a_header_loses_no_row_to_it(tmp_path, table, delimiter) -> None:
    file = write(tmp_path, table if delimiter == "," else table.replace(",", "\t"))
    said = refusal(file)
    assert "no header: the first row looks like data" in said
    given = said.split("--columns ")[1].rstrip("?").strip("'")
    assert "column" in given
    assert len(pairs(file, columns=given)) == 2


@pytest.mark.parametrize(
    "header",
    [
        "Timestamp,What is your question?,Our reply.",
        "How can we help?,Answer",
        "2024,question,answer",
    ],
)
def test_a_header_that_reads_like_a_sentence_is_one(tmp_path, header) -> None:
    width = header.count(",")
    row = ["2024-01-02"] * (width - 1) + ["how is it?", "It is well."]
    file = write(tmp_path, header + "\n" + (",".join(row) + "\n") * 2)
    names = [name for name in header.split(",")[width - 1 :]]
    given = f'question="{names[0]}",answer="{names[1]}"'
    assert pairs(file, columns=given) == [("how is it?", "It is well.")]


@pytest.mark.parametrize("name", ["rows.xlsx", "rows"])
def test_a_workbook_is_a_table(tmp_path, name) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ["客服问答"],
        [],
        ["问题", "答案", "日期"],
        ["a", 7, None],
        [None],
        ["c", "d", 0.5],
    ):
        book.active.append(row)
    with (tmp_path / name).open("wb") as stream:
        book.save(stream)
    found = prepared(tmp_path / name)
    assert [one["messages"][-1]["content"] for one in found.rows("train")] == ["7", "d"]
    assert not found.reasons and found.sources[0]["format"] == "xlsx (sheet 'Sheet')"


def test_a_workbook_without_a_header(tmp_path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["How?", "So."], ["Why?", "Because."]):
        book.active.append(row)
    book.save(tmp_path / "rows.xlsx")
    assert "no header" in refusal(tmp_path / "rows.xlsx")
    given = "question=column 1,answer=column 2"
    assert pairs(tmp_path / "rows.xlsx", columns=given) == [("How?", "So."), ("Why?", "Because.")]


def test_blank_rows_of_a_spreadsheet_are_no_rows(tmp_path) -> None:
    found = prepared(write(tmp_path, "question,answer\na,b\n" + ",\n" * 40))
    assert found.counts()["train"] == 1 and not found.reasons


def test_one_nul_byte_costs_its_row(tmp_path) -> None:
    found = prepared(write(tmp_path, "question,answer\na,b\nc\0d,e\nf,g\n"))
    assert found.counts()["train"] == 2 and list(found.reasons) == ['"question" holds a NUL byte']


def test_objects_glued_together(tmp_path) -> None:
    one = '{"question": "a", "answer": "b"}'
    assert len(pairs(write(tmp_path, one + one.replace('"a"', '"c"') + "\n"))) == 2
    assert pairs(write(tmp_path, one + ",\n" + one.replace('"a"', '"c"') + ",\n"))[1][0] == "c"


@pytest.mark.parametrize("orient", ["columns", "list", "split", "index", "records"])
def test_a_data_frame_in_any_orientation(tmp_path, orient) -> None:
    import pandas

    frame = pandas.DataFrame({"question": ["a", "c"], "answer": ["b", "d"]})
    value = frame.to_dict(orient) if orient == "list" else json.loads(frame.to_json(orient=orient))
    assert pairs(write(tmp_path, json.dumps(value))) == [("a", "b"), ("c", "d")]


# --- encodings ----------------------------------------------------------------------------------

TEXTS = {
    "gb18030": ("这个产品的保修期是多久？", "我们的产品保修一年，请您放心购买。"),
    "big5": ("這個產品的保固期是多久？", "我們的產品保固一年，請您放心購買。"),
    "shift_jis": ("この製品の保証期間はどのくらいですか？", "保証期間は一年です。"),
    "euc_kr": ("이 제품의 보증 기간은 얼마나 됩니까?", "보증 기간은 일 년입니다."),
    "cp1252": ("Wie lange währt die Gewähr für dieses Gerät?", "Für drei Jahre; fünf für Öfen."),
}


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("rows", [2, 300])
def test_an_encoding_is_told_by_its_text(tmp_path, encoding, rows) -> None:
    asked, answered = TEXTS[encoding]
    table = "question,answer\n" + "".join(f"{n} {asked},{answered} {n}\n" for n in range(rows))
    found = prepared(write(tmp_path, table.encode(encoding)))
    assert found.sources[0]["encoding"]
    assert found.rows("train")[0]["messages"][0]["content"] == f"0 {asked}"


def test_the_user_may_name_the_encoding(tmp_path) -> None:
    file = write(tmp_path, "question,answer\nопрос,ответ\n".encode("koi8-r"))
    assert pairs(file, encoding="koi8-r") == [("опрос", "ответ")]
    assert "unknown" in refusal(file, encoding="klingon")
    assert "unknown" in refusal(file, encoding="rot13")


# --- shapes of others ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"指令": "a", "输入": "", "输出": "b"},
        {"instruction": "a", "context": "", "response": "b", "category": "c"},
        {"kind": "k", "input": "a", "target": "b"},
        {"qa": {"question": "a", "answer": "b"}},
        {"question": "a", "answers": {"text": ["b", "b"], "answer_start": [0, 1]}},
        {"标准问": "a", "标准答": "b"},
        {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                      {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "用户：", "value": "a"}, {"from": "客服", "value": "b"}]},
    ],
    ids=lambda row: " ".join(row),
)  # fmt: skip
def test_a_shape_that_others_write(tmp_path, row) -> None:
    assert pairs(write(tmp_path, lines(row))) == [("a", "b")]


# --- advice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "flag"),
    [
        ("序号,用户说的,标准回答", "question=用户说的,answer=标准回答"),
        ("id,text,category", "question=text,answer=category"),
        ("n,Customer request,Our reply", "'question=Customer request,answer=Our reply'"),
        ('n,"Ask, please","Tell, us"', """'question="Ask, please",answer="Tell, us"'"""),
    ],
)
def test_advice_was_tried_and_works(tmp_path, header, flag) -> None:
    rows = "".join(f'{n},"how is thing {n}?","thing {n} is well"\n' for n in range(20))
    file = write(tmp_path, f"{header}\n{rows}")
    assert f"--columns {flag}?" in refusal(file)
    given = flag.strip("'")
    assert pairs(file, columns=given)[3] == ("how is thing 3?", "thing 3 is well")


@pytest.mark.parametrize("name", ["answer", "output"])
def test_two_answers_of_each_row_are_asked_about(tmp_path, name) -> None:
    asked = "question" if name == "answer" else "instruction"
    rows = [{asked: f"q{n}", name: [f"good {n}", f"bad {n}"]} for n in range(3)]
    file = write(tmp_path, lines(*rows))
    assert "--several-answers" in refusal(file)
    found = prepared(file, several_answers="first").rows("train")
    assert not any("references" in row for row in found)
    found = prepared(file, several_answers="accepted").rows("train")
    assert found[0]["references"] == ["good 0", "bad 0"]


def test_rows_of_which_none_is_usable_say_why(tmp_path) -> None:
    rows = [{"question": "a", "answer": ""}, {"question": "", "answer": "b"}, {"question": "c"}]
    said = refusal(write(tmp_path, lines(*rows)))
    assert 'as qa: row 1: empty "answer"; row 2: empty "question"; row 3: no "answer"' in said


def test_a_mapping_of_a_column_that_is_not_there(tmp_path) -> None:
    file = write(tmp_path, "text,label\na,b\n")
    said = refusal(file, columns="question=texts,answer=label")
    assert "no such column" in said and "did you mean text?" in said


def test_rows_of_one_group_stay_together_whatever_its_header_becomes(tmp_path) -> None:
    rows = [(f"question {n}?", f"answer {n}", f"g{n % 9}") for n in range(90)]
    file = write(tmp_path, "\n".join(["Question,Answer, Context ", *map(",".join, rows)]))
    for named in ("context", " Context ", "CONTEXT"):
        settings = Data(input=file, group_column=named, validation_ratio=0, test_ratio=0.3)
        found = prepare(settings)
        groups = {
            split: {int(row["messages"][-1]["content"][7:]) % 9 for row in found.rows(split)}
            for split in ("train", "test")
        }
        assert groups["train"] and groups["test"] and not groups["train"] & groups["test"]


def test_a_group_column_that_is_not_there(tmp_path) -> None:
    file = write(tmp_path, "question,answer,department\na?,b,c\n")
    said = refusal(file, group_column="departement")
    assert "no such column" in said and "did you mean department?" in said
    assert prepared(file, max_bad_rows=1).rows("train")  # the sample's own, by default


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ('{"data": [{oops},\n' + "[" * 5_000, {}),  # a second line that is too deep to be read
        ("id,messages\n1," + "[" * 5_000 + "\n", {}),
        ("3.5\n", {"input_format": "json"}),
        ("sep=;\n", {}),
        ("\n\n", {"input_format": "csv"}),
    ],
)
def test_what_looks_like_a_form_and_is_none_is_refused(tmp_path, text, settings) -> None:
    """Found by fuzzing: each ended as a bug."""
    assert refusal(write(tmp_path, text), **settings)


@pytest.mark.parametrize("order", ["instruction,question", "question,instruction"])
def test_a_mapped_column_wins_over_one_that_has_the_name(tmp_path, order) -> None:
    """Whichever came last was asked until now, whatever the user had said; found by fuzzing."""
    file = write(tmp_path, f"{order},output,team\n{order},said,x\n")
    mapping = "question=instruction,answer=output"
    (row,) = prepared(file, columns=mapping, group_column="team").rows("train")
    assert [message["content"] for message in row["messages"]] == ["instruction", "said"]


def test_no_advice_where_there_is_none(tmp_path) -> None:
    said = refusal(write(tmp_path, lines(*[{"text": f"a text {n}", "n": n} for n in range(9)])))
    assert "only 'text' holds text" in said and "--columns" not in said


def test_a_pointer_is_named_for_what_it_is(tmp_path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    assert "git lfs pull" in refusal(write(tmp_path, pointer))
    assert "web page" in refusal(write(tmp_path, "<!DOCTYPE html><html></html>"))
    assert ".xls" in refusal(write(tmp_path, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600))


@pytest.mark.parametrize(
    "content",
    [
        '{"columns": ["question", "answer"], "data": 5}',
        '{"columns": ["question", "answer"], "index": [0], "data": [5]}',
        '{"question": {"0": "a"}, "answer": {}}',
        '{"question": "a", "answers": {"text": [[1], [2]]}}',
        '{"question": "a", "answers": {"text": []}}',
        "[" * 100_000,
        '{"question": ' * 100_000,
        '[{"question": "a", "answer": %s}]' % ("9" * 6000),
        '{"question": "a", "answer": %s}' % ("9" * 6000),
        "sep=\n a,b\n",
        ",,\n,,\n",
        'messages\n"[1,2"\n',
    ],
    ids=lambda content: content[:30],
)
def test_what_nobody_can_read_is_bad_input(tmp_path, content) -> None:
    """Exit 3 with words, never a bug of ours."""
    assert "cannot be read" in (said := refusal(write(tmp_path, content))) or "no usable" in said
