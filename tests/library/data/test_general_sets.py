"""The general sets: whole, balanced, and nothing is replayed in training that evaluation asks."""

import re
from collections import Counter

import pytest

from slimtune.data.general_sets import PROJECT, WORLD, general_set, rows_file, set_name
from slimtune.data.rows import read_rows
from slimtune.data.similarity import keys_of, shingles
from slimtune.models import tokenizers
from slimtune.sample import own_world
from slimtune.sample.parts import SAMPLE_MODELS, WEIGHTS

CHECKS = {"number", "exact", "contains", "regex"}
ALIKE = 0.8  # from which on similar rows leak (data.similarity)


def asked(question: str) -> str:
    return keys_of([{"role": "user", "content": question}]).question


@pytest.mark.parametrize("name", [PROJECT, WORLD])
def test_a_set_has_150_items_of_each_language_in_four_families(name: str) -> None:
    items = general_set(name).items
    assert Counter(item.language for item in items) == {"en": 150, "zh": 150}
    assert len({item.family for item in items}) == 4
    assert len({item.id for item in items}) == len({item.question for item in items}) == 300
    assert {item.check for item in items} <= CHECKS
    assert all(item.answers and all(item.answers) for item in items)
    for item in items:
        if item.check == "regex":
            assert all(map(re.compile, item.answers))


@pytest.mark.parametrize("name", [PROJECT, WORLD])
def test_few_items_are_of_all_families_in_their_shares(name: str) -> None:
    chosen = general_set(name).chosen(30)
    shares = Counter((item.language, item.family) for item in chosen)
    assert len(chosen) == 60 and set(shares.values()) == {6, 8}
    alone = general_set(name).chosen(30, ["zh"])
    assert alone == chosen[30:]
    assert general_set(name).chosen(10_000) and not general_set(name).chosen(10, [])


def test_no_row_for_replay_asks_what_is_asked_or_nearly_so() -> None:
    rows = [row["messages"][0]["content"] for row in read_rows(rows_file(PROJECT))]
    items = [item.question for item in general_set(PROJECT).items]
    assert len(rows) == 263 and not {*map(asked, rows)} & {*map(asked, items)}
    ours = [(one, shingles(one.lower().encode())) for one in rows]
    for item in items:
        theirs = shingles(item.lower().encode())
        for row, pieces in ours:
            assert len(theirs & pieces) < ALIKE * len(theirs | pieces), (item, row)


def test_no_text_for_replay_ends_a_broken_sentence_or_is_asked_itself() -> None:
    told = rows_file(WORLD).read_text(encoding="utf-8")
    world = general_set(WORLD)
    assert not [item.question for item in world.items if item.question in told]
    assert not [one.text for one in world.passages if one.text in told]


def test_the_worlds_files_are_those_that_it_writes() -> None:
    for name, lines in own_world.own_world().items():
        file = rows_file(WORLD).with_name(name)
        assert file.read_text(encoding="utf-8").splitlines() == lines, own_world.__doc__


@pytest.mark.parametrize("model", SAMPLE_MODELS)
def test_the_sample_models_are_known_by_their_vocabulary(model: str) -> None:
    tokenizer = tokenizers.load_tokenizer(WEIGHTS / model)
    assert set_name(tokenizers.vocabulary_digest(tokenizer)) == WORLD
    assert set_name("another") == PROJECT
