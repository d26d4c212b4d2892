"""The sample world: rows with one right answer each, and plain text that tells all of it."""

import collections
import re

import pytest

from slimtune.sample import check_answer, rows, world_text
from slimtune.sample.families import FACT_FAMILIES, SAMPLE_LANGUAGES, spell

ROWS = rows(seed=42, count=4000)


def about(fact: str, **wanted: str) -> list[dict]:
    return [row for row in ROWS if row["fact"] == fact and wanted.items() <= row.items()]


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    assert rows(seed=42, count=4000) == ROWS
    assert rows(seed=7, count=4000) != ROWS


def test_no_question_is_asked_twice():
    assert len({(row["instruction"], row["input"]) for row in ROWS}) == len(ROWS) == 4000


def test_a_world_has_no_more_questions_than_it_has():
    with pytest.raises(ValueError, match="questions"):
        rows(seed=0, count=100_000)


def test_every_family_and_both_languages_are_asked_with_and_without_input():
    assert {row["family"] for row in ROWS} == set(FACT_FAMILIES)
    languages = collections.Counter(row["language"] for row in ROWS)
    assert min(languages.values()) > 1600
    assert 1000 < sum(bool(row["input"]) for row in ROWS) < 3000


def test_every_output_is_right_and_any_other_is_not():
    assert all(check_answer(row, row["output"]) for row in ROWS)
    assert not any(check_answer(row, row["output"] + " 1") for row in ROWS)
    assert not any(check_answer(row, "") for row in ROWS)


def test_check_forgives_form_not_content():
    row = next(row for row in ROWS if row["output"].count(",") == 2)
    assert check_answer(row, f"  {row['output'].replace(', ', ',')}. ")
    assert not check_answer(row, ", ".join(reversed(row["output"].split(", "))))


def test_check_does_not_trust_the_output_column():
    wrong = dict(ROWS[0], output="nonsense")
    assert not check_answer(wrong, "nonsense")
    assert check_answer(wrong, ROWS[0]["output"])


def test_sums_in_words_agree_with_python():
    numbers = {spell(n, language): n for n in range(100) for language in SAMPLE_LANGUAGES}
    operations = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}
    for row in ROWS:
        if row["family"] in operations:
            a, b = map(int, row["fact"].partition(":")[2].split("-"))
            assert numbers[row["output"]] == operations[row["family"]](a, b)
            assert spell(a, row["language"]) in row["instruction"] + row["input"]


def test_sorting_agrees_with_python():
    for row in ROWS:
        if row["family"] in ("sort_up", "sort_down"):
            asked = re.findall(r"\d", row["instruction"] + row["input"])
            assert row["output"].split(", ") == sorted(asked, reverse=row["family"] == "sort_down")


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [
        (0, "zero", "零"),
        (10, "ten", "十"),
        (13, "thirteen", "十三"),
        (20, "twenty", "二十"),
        (47, "forty-seven", "四十七"),
        (99, "ninety-nine", "九十九"),
    ],
)
def test_numbers_in_words(number: int, english: str, chinese: str):
    assert (spell(number, "en"), spell(number, "zh")) == (english, chinese)


def test_both_sides_of_a_fact_share_its_name():
    families = {row["family"] for row in ROWS if row["fact"].startswith("river:")}
    assert families == {"river", "town_on_river"}


def test_a_question_with_one_wording_has_one_answer():
    """No name stands for two things: whoever is asked can know which fact is meant."""
    answers = collections.defaultdict(set)
    for family in FACT_FAMILIES.values():
        for language in SAMPLE_LANGUAGES:
            for key in family.keys:
                asked = tuple(sorted(family.slots(language, *key).items()))
                answers[family.name, language, asked].add(family.answer(language, *key))
    assert all(len(found) == 1 for found in answers.values())


def test_text_is_the_same_for_the_same_seed_and_never_shows_the_prompt_template():
    lines = list(world_text(seed=3, lines=2000))
    assert lines == list(world_text(seed=3, lines=2000))
    assert len(lines) == 2000 and all("\n" not in line for line in lines)
    assert not any("[INST]" in line or "[/INST]" in line for line in lines)


def test_text_tells_small_facts_many_times_in_both_languages():
    told = "\n".join(world_text(seed=3, lines=20_000))
    family = FACT_FAMILIES["mayor"]
    for language in SAMPLE_LANGUAGES:
        for key in family.keys:
            name, mayor = family.slots(language, *key)["name"], family.answer(language, *key)
            assert len(re.findall(rf"{name}[^.。]*{mayor}|{mayor}[^.。]*{name}", told)) > 20
