"""What people look for in a report: rows as the model sees them, columns of few values, bytes."""

from types import SimpleNamespace

import pytest
from prepared_rows import Output, alpaca_row, saved

from slimtune.config.data import Data
from slimtune.data import columns, examples, writing
from slimtune.data.preparation import prepare
from slimtune.report import data_report


class Limit:
    """A tokenizer of so many tokens a character; the template puts Q and A before the turns."""

    max_length = 512

    def __init__(self, tokens: int = 1) -> None:
        self.tokens = tokens

    def __call__(self, messages, place):
        asked, said = (self.tokens * len(m["content"]) for m in messages)
        one = {"input_ids": [7] * (asked + said + 30), "labels": [-100] * (asked + 29) + [7] * said}
        one["labels"].append(7)  # the end token
        return SimpleNamespace(conversations=[messages], encoded=[one], how="whole", reason="")

    def shown(self, messages):
        return [(f"Q {messages[0]['content']}\nA ", False), (messages[1]["content"], True)]


def page(folder, rows, fit=None, language="en", **settings) -> str:
    settings |= {"validation_ratio": 0, "test_ratio": 0}
    prepared = prepare(Data(input=saved(folder, rows), **settings))
    writing.write_outputs(prepared, folder / "out", "train", fit, language=language)
    return (folder / "out" / data_report.MARKDOWN).read_text(encoding="utf-8")


@pytest.mark.parametrize(("language", "words"), [("en", "row {}:"), ("zh", "第 {} 行：")])
def test_five_kept_rows_stand_in_the_report_as_the_model_sees_them(tmp_path, language, words):
    rows = [alpaca_row(i) for i in range(41)]
    told = page(tmp_path, rows, Limit(), language)
    assert told.count("⟦Answer") == 5 == examples.EXAMPLES
    for place in (0, 10, 20, 30, 40):
        assert f"raw.jsonl{', ' if language == 'en' else ' '}{words.format(place + 1)}" in told
        assert f"> Q Question {place}?<br>A<br>⟦Answer {place}.⟧" in told
    assert page(tmp_path, rows[:2], Limit()).count("⟦Answer") == 2


def test_without_a_tokenizer_the_turns_stand_under_their_roles_and_all_is_inert(tmp_path):
    told = page(tmp_path, [alpaca_row(1, output="<script>x</script>\n# head | `c`")])
    assert "> user: Question 1?<br>⟦assistant:" in told
    assert "<script" not in told and "\n# head" not in told


def test_rows_that_are_left_out_are_no_examples(tmp_path):
    rows = [alpaca_row(0), {"instruction": "no answer"}, alpaca_row(0), alpaca_row(1)]
    told = page(tmp_path, rows)
    assert told.count("⟦Answer") == 0 and told.count("⟦assistant: Answer") == 2
    rows = [alpaca_row(i) for i in range(14)]
    asked = saved(tmp_path, [row | {"output": "Else."} for row in rows[5:]], "test.jsonl")
    told = page(tmp_path, rows, test_input=asked)  # nine of fourteen are leaks
    assert told.count("⟦assistant: Answer") == 5


def test_columns_of_few_values_are_counted_and_others_are_not(tmp_path):
    departments = ("billing", "billing", "returns")
    rows = [alpaca_row(i, department=departments[i % 3], number=i) for i in range(60)]
    rows = [row | {"note": f"{'long ' * 20}{i % 2}"} for i, row in enumerate(rows)]
    told = page(tmp_path, rows)
    assert "| department | rows |" in told and "| billing | 40 |" in told
    assert "| returns | 20 |" in told
    assert "| number | rows |" not in told and "| note | rows |" not in told
    assert "| number | 100.0% |" in told  # named as not used all the same


def test_counts_of_blocks_add_up_and_too_many_values_stay_too_many():
    whole: columns.Values = {}
    for start in (0, 30):
        part: columns.Values = {}
        for i in range(start, start + 30):
            columns.count_value(part, "small", i % 4)
            columns.count_value(part, "wide", i)
            columns.count_value(part, "spread", i // 2)
        columns.add_values(whole, part)
    assert sum(columns.small(whole["small"]).values()) == 60 and len(whole["small"]) == 4
    assert whole["wide"] is None and whole["spread"] is None  # 15 in each block, 30 in all
    assert columns.small(None) == {} == columns.small(columns.Counter("abcd"))


@pytest.mark.parametrize(("tokens", "told"), [(1, False), (2, False), (3, True)])
def test_a_tokenizer_that_cuts_chinese_into_bytes_gets_a_word(tmp_path, tokens, told):
    rows = [alpaca_row(i, instruction=f"怎样退货{i}", output="请联系客服。") for i in range(9)]
    rows += [alpaca_row(i) for i in range(9)]  # English counts for nothing
    numbers = Output(saved(tmp_path, rows), fit=Limit(tokens)).numbers
    assert numbers["tokens"]["per_chinese_character"] == tokens
    closing = writing.closing_numbers(numbers, "train", 512)
    assert ("tokens a Chinese character" in closing) == told
    for language, words in (("en", "into bytes"), ("zh", "拆成了字节")):
        assert (words in data_report.data_report_text(numbers, "", language)) == told
    english = Output(saved(tmp_path, rows[9:]), fit=Limit(5)).numbers["tokens"]
    assert "per_chinese_character" not in english
