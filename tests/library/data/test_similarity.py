"""MinHash finds rows that differ by small edits, leaves the others, and counts each once."""

import random

import numpy as np
import pytest
from prepared_rows import SPLITS, Output, alpaca_row, saved
from pydantic import ValidationError

from slimtune.config.data import Data
from slimtune.data import blocks, similarity

LETTERS = "abcdefghijklmnopqrstuvwxyz 你好世界人工智能学习"


def sentence(chance: random.Random, length: int = 200) -> str:
    return "".join(chance.choice(LETTERS) for _ in range(length)).strip() + "."


def edited(text: str, chance: random.Random) -> str:
    """One sign changed, one inserted: about 10 of 200 shingles are others."""
    for _ in range(2):
        at = chance.randrange(len(text) - 1)
        text = text[:at] + chance.choice("xyz") + text[at + chance.randrange(2) :]
    return text


def jaccard(one: str, two: str) -> float:
    wide = [3 if any("\u4e00" <= sign <= "\u9fff" for sign in text) else 5 for text in (one, two)]
    sets = [
        {text[at : at + n] for at in range(max(len(text) - n + 1, 1))}
        for text, n in zip((one, two), wide, strict=True)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def rows_and_edits(seed: int, number: int = 40) -> tuple[list[dict], list[dict]]:
    chance = random.Random(seed)
    rows = [
        alpaca_row(i, instruction=sentence(chance), output=sentence(chance)) for i in range(number)
    ]
    edits = [row | {"instruction": edited(row["instruction"], chance)} for row in rows]
    return rows, edits


def test_the_estimate_is_near_the_exact_similarity():
    chance = random.Random(1)
    pairs = []
    for length in (3, 30, 300, 1000):
        for _ in range(40):
            text = sentence(chance, length).replace(" ", "").replace(".", "") or "a"
            other = list(text)
            for _ in range(chance.randrange(length // 8 + 1)):
                other[chance.randrange(len(other))] = chance.choice("xyz")
            pairs.append((text, "".join(other)))
    raw = b"".join(similarity.signature([text.encode()]) for pair in pairs for text in pair)
    signatures = np.frombuffer(raw, np.uint8).reshape(-1, similarity.SIGNATURE_SIZE)
    places = np.arange(0, len(signatures), 2)
    found = similarity.estimate_similarity(signatures, places, places + 1)
    off = np.abs(found - [jaccard(*pair) for pair in pairs])
    assert off.mean() < 0.03 and off.max() < 0.15
    assert similarity.signature([b""]) == similarity.signature([])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_miss_one_pair_in_a_hundred_at_most(threshold):
    width = similarity.width(threshold)
    missed = (1 - threshold**width) ** (similarity.SIGNATURE_SIZE // width)
    assert missed <= 0.01 and len(list(similarity.bands(np.zeros((1, 128), np.uint8), 0.8))) == 21


def test_small_edits_are_found_and_distant_rows_kept(tmp_path):
    rows, edits = rows_and_edits(2)
    file = saved(tmp_path, rows + edits)
    settings = {"test_ratio": 0, "validation_ratio": 0}
    off = Output(file, **settings)
    assert off.numbers["kept"] == 80 and not off.rejected
    out = Output(file, similarity=0.8, **settings)
    assert out.adds_up() and out.numbers["near_duplicates"] == 40
    assert [row["source"]["line"] for row in out.rows] == list(range(1, 41))
    for one in out.rejected:
        words = one["reason"].split(", similarity ")
        assert words[0] == f"near line {one['line'] - 40}"
        ours, theirs = (
            "".join(row["instruction"] + row["output"])
            for row in (one["row"], rows[one["line"] - 41])
        )
        assert abs(float(words[1]) - jaccard(ours, theirs)) < 0.12
    assert Output(file, similarity=0.8, duplicates="exact", **settings).numbers["kept"] == 80


def test_training_rows_near_a_judging_row_are_leaks(tmp_path):
    rows, edits = rows_and_edits(3)
    test = saved(tmp_path, edits[:15], "test.jsonl")
    settings = {"test_input": test, "validation_ratio": 0, "similarity": 0.8}
    out = Output(saved(tmp_path, rows), **settings)
    assert out.adds_up() and (out.numbers["leaks"], out.numbers["near_duplicates"]) == (15, 0)
    assert [len(out.splits[split]) for split in SPLITS] == [25, 0, 15]
    words = "near line 1 of test.jsonl in the test split, similarity 0."
    assert out.rejected[0]["reason"].startswith(words)
    assert Output(tmp_path / "raw.jsonl", **settings, drop_leaks=False).numbers["kept"] == 55


def test_a_leak_is_told_by_its_question_and_a_repeat_by_all_that_is_said(tmp_path):
    rows, edits = rows_and_edits(7)
    chance = random.Random(8)
    edits = [row | {"output": sentence(chance, 900)} for row in edits[:15]]
    test = saved(tmp_path, edits, "test.jsonl")
    settings = {"test_input": test, "validation_ratio": 0}
    raw = saved(tmp_path, [*rows, rows[20] | {"output": sentence(chance, 900)}])
    out = Output(raw, leak_similarity=0.6, **settings)
    assert out.adds_up() and (out.numbers["leaks"], out.numbers["near_duplicates"]) == (15, 0)
    assert Output(raw, **settings).numbers["leaks"] == 0
    only_repeats = Output(raw, similarity=0.6, drop_leaks=False, **settings).numbers
    assert (only_repeats["leaks"], only_repeats["near_duplicates"]) == (0, 0)


@pytest.mark.parametrize("seed", [4, 5])
def test_counts_add_up_and_workers_change_nothing(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    rows, edits = rows_and_edits(seed)
    mess = [*rows, *edits, *rows[:7], {"instruction": "no answer"}, *edits[:3]]
    random.Random(seed).shuffle(mess)
    file = saved(tmp_path, mess)
    one, two = (Output(file, similarity=0.8, workers=count) for count in (1, 2))
    assert one.files == two.files and one.adds_up()
    numbers = one.numbers
    assert numbers["rejected"] == 1 and numbers["duplicates"] == 10 and numbers["kept"] == 40
    assert numbers["near_duplicates"] + numbers["leaks"] == 40 and numbers["leaks"] > 0


def test_rows_of_one_pattern_are_compared_in_reasonable_time_and_one_stays(tmp_path):
    same = "Please add up these two numbers for me and tell me what the sum of the two is: "
    rows = [alpaca_row(i, instruction=f"{same}{i} and {i + 1}") for i in range(1500)]
    out = Output(saved(tmp_path, rows), similarity=0.6, test_ratio=0, validation_ratio=0)
    assert out.adds_up() and 1 <= out.numbers["kept"] < 300


def test_a_shared_system_prompt_makes_no_rows_alike(tmp_path):
    rows, _ = rows_and_edits(6, 10)
    rows = [row | {"instruction": row["instruction"][:30], "output": "Yes."} for row in rows]
    rows = [row | {"system": "Be brief, and be kind. " * 40} for row in rows]
    settings = {"similarity": 0.7, "test_ratio": 0, "validation_ratio": 0}
    assert Output(saved(tmp_path, rows), **settings).numbers["kept"] == 10


def test_a_similarity_without_effect_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="similarity needs duplicates"):
        Data(similarity=0.9, duplicates="keep", drop_leaks=False)
    with pytest.raises(ValidationError, match="leak_similarity needs drop_leaks"):
        Data(leak_similarity=0.9, drop_leaks=False)
