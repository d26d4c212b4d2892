"""The tables that close a script, on a real terminal of 80 columns and in a pipe."""

import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from terminals import said

from slimtune.evaluation import outputs
from slimtune.evaluation.comparison import Comparison
from slimtune.export import outlook
from slimtune.pruning.outcome import PruneReport, Sizes
from slimtune.report.cost_card import HEADERS, closing_table
from slimtune.report.measure_table import names_of

PRINTS = """
import json, sys
from slimtune.console import table
*told, spare = json.load(open(sys.argv[1]))
table(*told, spare=spare)
"""
LABELS = ["base", "slimtune-sample-Q4_K_M", "我的客服模型-蒸馏后-第二版-Q4_K_M", "a [b] :cat: c"]
LABELS += ["runs/a/" + "m" * 60 + "-Q8_0"]


def printed(
    headers: list[str], rows: list[list[str]], folder: Path, columns: int | None, spare: int = 0
) -> list[str]:
    """The lines of `console.table` in a process whose stdout is a terminal, or a pipe (None)."""
    told = folder / "told.json"
    told.write_text(json.dumps([headers, rows, spare]), encoding="utf-8")
    return said(PRINTS, str(told), columns=columns)


@pytest.fixture
def comparison() -> Comparison:
    """Five models, each made from the one before, with the widest figures that are met."""
    cost = {"parameters": 1_100_048_384, "bytes_on_disk": 999_900_000, "load_seconds": 1.0}
    cost |= {"prompt_tokens_per_second": 9e3, "generated_tokens_per_second": 1234.0}
    cost |= {"seconds": 1e3, "peak_memory_bytes": 987_600_000}
    judged = {"score": 100.0, "low": 100.0, "high": 100.0, "verdict": "no clear change"}
    judged["verdict_made_from"] = "worse"
    models = []
    for place, label in enumerate(LABELS):
        source = LABELS[place - 1] if place else None
        told = {"label": label, "made_from": source, "original": "base", "cost": cost}
        quality = dict.fromkeys(names_of("quality"), judged)
        quality["kl_divergence"] = judged | {"score": 12.3456} if place else None
        models.append(told | quality)
    return Comparison((), [], [], models, [], {})


def figures(row: list[str]) -> list[str]:
    return " ".join(row[1:]).split()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_comparison_fits_80_columns_with_every_figure(comparison, language, tmp_path):
    headers, rows = outputs.comparison_table(comparison, language)
    lines = printed(headers, rows, tmp_path, 80)
    assert len(lines) == 2 + len(LABELS)
    assert {cell_len(line) for line in lines} == {80}
    assert lines[0].split("  ")[0] == headers[0] and all(one in lines[0] for one in headers)
    for line, row in zip(lines[2:], rows, strict=True):
        assert line.split()[-len(figures(row)) :] == figures(row)
    names = [line[: line.index("100.0")].rstrip() for line in lines[2:]]
    assert names[0] == LABELS[0] and names[3] == LABELS[3]
    assert names[1].startswith("slimtune-") and names[1].endswith("Q4_K_M")
    assert names[2].startswith("我的客服") and names[2].endswith("版-Q4_K_M")
    assert names[4].startswith("runs/a/") and names[4].endswith("-Q8_0")


def test_names_are_whole_where_there_is_room(comparison, tmp_path):
    headers, rows = outputs.comparison_table(comparison)
    for columns in (160, None):
        lines = printed(headers, rows, tmp_path, columns)
        assert [line.rpartition("  100.0")[0].rstrip() for line in lines[2:]] == LABELS


def test_on_a_terminal_that_is_far_too_narrow_no_figure_is_lost(comparison, tmp_path):
    headers, rows = outputs.comparison_table(comparison)
    lines = printed(headers, rows, tmp_path, 40)
    for line, row in zip(lines[2:], rows, strict=True):
        assert line.split()[-len(figures(row)) :] == figures(row)


def test_the_card_of_a_combined_run_fits_80_columns(tmp_path):
    row = ["evaluate", "123456", "987.6 MB", "1,100,048,384", "999.9 MB", "12.3456"]
    row += ["123456.78", "100.0", "1,234"]
    assert len(row) == len(HEADERS)
    lines = printed(*closing_table([row]), tmp_path, 80)
    told = ["evaluate", "123456", "987.6", "MB", "999.9", "MB", "123456.78", "100.0"]
    assert max(map(cell_len, lines)) <= 80 and lines[2].split() == told


def test_what_a_conversion_would_come_to_fits_80_columns_without_its_picture(tmp_path):
    row = ["2.75 bits", "999.9 MB", "16.00", "1.2e-05", "12.3456", "987.6 MB", "123,456", "RAM"]
    whole = [*row, "○" + " " * (outlook._PLOT - 2) + "●"]
    lines = printed(outlook.HEADERS, [whole], tmp_path, 80, outlook.PICTURES)
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].split() == [*outlook.HEADERS[:-1]] and lines[2].split() == " ".join(row).split()
    for columns in (120, None):
        lines = printed(outlook.HEADERS, [whole], tmp_path, columns, outlook.PICTURES)
        assert lines[2].endswith(whole[-1])


def test_sizes_before_and_after_pruning_fit_80_columns(tmp_path):
    sizes = Sizes(70_553_706_496, 141_107_412_992, 128_256, 80, 8192, 28_672, 64, 8, 12345.67, 1e6)
    rows = PruneReport(sizes, sizes, "rows", {}, []).rows()
    lines = printed(["", "before", "after"], rows, tmp_path, 80)
    assert max(map(cell_len, lines)) <= 80 and len(lines) == 2 + len(rows)


@pytest.mark.parametrize(
    ("language", "wanted"),
    [
        ("en", "worse than {}, match +2.5, KL 12.3456 (was 12.3456)"),
        ("zh", "差于 {}，匹配 +2.5，KL 12.3456（原为 12.3456）"),
    ],
)
def test_each_step_is_told_where_it_did_not_start_from_the_first(comparison, language, wanted):
    first, second, third, fourth, fifth = comparison.measures
    second["exact_match"] = second["exact_match"] | {"score": 97.5}
    fourth["made_from"], fifth["made_from"] = None, first["label"]
    told = outputs.steps(comparison, language)
    assert told == {third["label"]: wanted.format(second["label"])}
    second["original"] = "another"
    assert "KL" not in outputs.steps(comparison, language)[third["label"]]
