"""The data report: its sums worked out again by hand, its page inert, its picture there."""

import json
import re
import statistics
from collections import Counter
from html import unescape
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from matplotlib import image

from slimtune.data import cleaning
from slimtune.data.account import (
    ROW_KINDS,
    SPLITS,
    Account,
    TokenSize,
    histogram,
    padding_saved,
    percentiles,
    report_numbers,
    truncated_share,
)
from slimtune.report import data_report
from slimtune.report.words import LANGUAGES

SOURCE = {"file": "raw.json", "encoding": "utf-8", "format": "json", "shape": "alpaca", "rows": 9}


def account(rows: int = 200, *, tokens: bool = True, seed: int = 3) -> Account:
    """Rows of random lengths in three splits, some of each kind set aside."""
    random = Random(seed)
    kept = Account(sources=[SOURCE])
    for _ in range(rows):
        split = random.choices(SPLITS, (8, 1, 1))[0]
        length = random.randint(10, 400)
        sizes = [TokenSize(length, length // 3)] if tokens else []
        kept.keep(split, random.choice(("zh", "en", "mixed")), sizes, "whole" if tokens else "")
    for kind, reason in (("rejected", 'no "output"'), ("duplicate", "same as line 3")):
        kept.set_aside(kind, reason)
    kept.cleaning["special_tokens"] += 2
    return kept


def padded_share(lengths: list[int], batch_size: int) -> float:
    """The positions that padding adds, counted one batch at a time."""
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    computed = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(lengths) / computed


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_padding_saved(count, batch_size):
    random = Random(count)
    lengths = [random.randint(1, 900) for _ in range(count)]
    expected = padded_share(lengths, batch_size)
    assert padding_saved(lengths, batch_size) == pytest.approx(expected, abs=1e-4)
    assert padding_saved(lengths, 1) == padding_saved([], batch_size) == 0


def test_percentiles_are_values_that_occur():
    lengths = [9, 1, 5, 7, 3, 11, 13, 15, 17, 19]
    assert percentiles(lengths) == {"p50": 9, "p90": 17, "p99": 19, "max": 19}
    assert percentiles([4]) == {"p50": 4, "p90": 4, "p99": 4, "max": 4}
    assert percentiles([]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    odd = Random(1).sample(range(1000), 101)
    assert percentiles(odd)["p50"] == statistics.median(odd)


@pytest.mark.parametrize("longest", [1, 39, 40, 41, 4000])
def test_every_conversation_stands_in_one_bar(longest):
    lengths = {"train": [1, longest], "validation": [], "test": [longest] * 3}
    bars = histogram(lengths)
    assert [sum(bars[split]) for split in SPLITS] == [2, 0, 3]
    assert bars["edges"][0] == 0 and bars["edges"][-1] > longest
    assert len(bars["edges"]) == len(bars["train"]) + 1 <= 42


def test_the_numbers_of_an_account():
    kept = account()
    found = report_numbers(kept, batch_size=8)
    lengths = list(kept.tokens)
    assert found["rows_in"] == 202 == found["kept"] + found["rejected"] + found["duplicates"]
    tokens = found["tokens"]
    assert tokens["total"] == sum(lengths) and tokens["max"] == max(lengths)
    assert tokens["supervised_share"] == pytest.approx(
        sum(kept.supervised) / sum(lengths), abs=1e-4
    )
    train = [n for n, place in zip(lengths, kept.token_splits, strict=True) if place == 0]
    assert tokens["padding_saved"] == pytest.approx(padded_share(train, 8), abs=1e-4)
    assert tokens["splits"]["train"]["conversations"] == len(train) == found["splits"]["train"]
    assert tokens["splits"]["train"]["max"] == max(train)
    assert sum(tokens["histogram"]["train"]) == len(train)


def test_share_truncated():
    assert truncated_share(Counter(whole=6, shortened=3, split=1)) == 0.3
    assert truncated_share({}) == 0


def test_a_million_conversations_cost_arrays_not_rows():
    kept = account(0)
    kept.tokens.extend(range(1, 1_000_001))
    kept.supervised.extend(range(1_000_000))
    kept.token_splits.extend([0] * 1_000_000)
    tokens = report_numbers(kept)["tokens"]
    assert tokens["p50"] == 500_000 and tokens["total"] == 500_000_500_000


def test_what_is_written(tmp_path):
    found = report_numbers(account())
    data_report.write_data_report(found, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(data_report.REPORT_FILES)
    assert json.loads((tmp_path / data_report.JSON).read_text(encoding="utf-8")) == found
    page = (tmp_path / data_report.MARKDOWN).read_text(encoding="utf-8")
    for heading in ("Splits", "Languages", "Why rows were rejected", "Cleaning", "Tokens"):
        assert f"## {heading}" in page
    assert f"({data_report.PICTURE})" in page and "| rows in | 202 | 100.0% |" in page
    assert "| special tokens | 2 |" in page
    height, width, _ = image.imread(tmp_path / data_report.PICTURE).shape
    assert 300 < height < width


def test_the_same_account_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        data_report.write_data_report(report_numbers(account()), tmp_path / name)
    for name in data_report.REPORT_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_a_tokenizer_the_page_says_so(tmp_path):
    found = report_numbers(account(tokens=False))
    data_report.write_data_report(found, tmp_path)
    assert "tokens" not in found
    assert "not counted" in (tmp_path / data_report.MARKDOWN).read_text(encoding="utf-8")
    height, width, _ = image.imread(tmp_path / data_report.PICTURE).shape
    assert width < 2 * height


HOSTILE = (
    "<script>alert(1)</script> | ![x](http://evil/x.png) [a](javascript:b) `c` \n# head \ud800"
)


def test_what_files_and_rows_say_is_inert_and_kept(tmp_path):
    hostile = account(3)
    hostile.sources = [SOURCE | {"file": f"{HOSTILE}.json", "columns": HOSTILE}]
    hostile.set_aside("rejected", f'no "{HOSTILE}"')
    hostile.set_aside("rejected", 'no "my_column"')
    data_report.write_data_report(report_numbers(hostile), tmp_path)
    page = (tmp_path / data_report.MARKDOWN).read_text(encoding="utf-8")
    assert "<script" not in page and "![x](" not in page and "http://evil" not in page
    assert "\n# head" not in page and page.count("\n# ") == 0
    assert "my_column" in unescape(page).replace("\\", "")
    rows = [line for line in page.splitlines() if "alert" in line and line.startswith("|")]
    assert rows and {line.replace("\\|", "").count("|") for line in rows} <= {3, 7}


def test_long_lists_of_reasons_are_cut_on_the_page_only(tmp_path):
    many = account(3)
    for number in range(50):
        many.set_aside("rejected", f"unknown role {number}")
    found = report_numbers(many)
    assert len(found["reasons"]) == 51
    assert "31 rarer reasons" in data_report.data_report_text(found)


def test_shortened_split_and_left_out_rows_are_told():
    kept = account(10)
    kept.keep("train", "en", [TokenSize(20, 5)], "shortened")
    kept.keep("train", "en", [TokenSize(20, 5), TokenSize(30, 5)], "split")
    kept.set_aside("too_long", "900 tokens, more than 512")
    page = data_report.data_report_text(report_numbers(kept))
    assert "| shortened at the start of the prompt | 1 |" in page
    assert "| split into several conversations | 1 |" in page
    assert "| left out as too long | 1 |" in page


def test_the_page_speaks_chinese_with_the_same_figures():
    kept = account(10)
    kept.keep("train", "en", [TokenSize(20, 5), TokenSize(30, 5)], "split")
    kept.set_aside("too_long", "900 tokens, more than 512")
    numbers = report_numbers(kept)
    english, chinese = (data_report.data_report_text(numbers, "", one) for one in ("en", "zh"))
    figures = [re.findall(r"\| ([\d,.%]+) (?=\|)", page) for page in (english, chinese)]
    assert figures[0] == figures[1] and len(figures[0]) > 30
    assert chinese.startswith("# 数据报告：raw.json") and "| 因过长而剔除 | 1 |" in chinese
    assert "rows" not in chinese and "rejected |" not in chinese


def test_no_line_of_the_chinese_tables_begins_with_an_english_word():
    """Of every count that cleaning can note, read from where it is noted; but for a reason."""
    room = Path(cleaning.__file__).parent
    code = "".join(file.read_text("utf-8") for file in (room / "cleaning.py", room / "turns.py"))
    kinds = re.findall(r'(?:cleaning\[|found\.append\()"(\w+)"', code)
    assert {"several_answers", "mojibake"} <= set(kinds)
    kept = account(30)
    kept.cleaning.update(kinds)
    kept.sources = [SOURCE | {"weight": 2.0, "train_rows": 18}]
    page = data_report.data_report_text(report_numbers(kept), "", "zh")
    first = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    english = [
        cell for cell in first if re.search("[a-z]", cell) and not re.search("[一-龥]", cell)
    ]
    assert english == [SOURCE["file"], 'no "output"']
    assert not [cell for cell in headers(page) if re.fullmatch("[A-Za-z ]+", cell)]


def headers(page: str) -> list[str]:
    """The cells of the first line of each table."""
    lines = page.splitlines()
    heads = [above for above, line in pairwise(lines) if line.startswith("| ---")]
    return [cell.strip() for head in heads for cell in head.split("|")]


def test_the_account_told_in_words_is_all_of_it():
    """A kind of rows set aside that the report has no word for would break its balance."""
    for words in LANGUAGES.values():
        told = words.data_report.account
        assert list(told) == ["rows_in", "kept", *ROW_KINDS.values()]
