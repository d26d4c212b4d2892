"""The first steps of making the sample models again, on a tiny setting."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from slimtune.models import tokenizers
from slimtune.prompts import IGNORED
from slimtune.sample import pretraining

ROWS = [
    [
        {"role": "user", "content": f"What is {a} plus one?"},
        {"role": "assistant", "content": b},
    ]
    for a, b in [("one", "two"), ("two", "three"), ("three", "four"), ("four", "five")]
]
ROUNDS = {"base": ((3, 3e-3),), "teacher": ((3, 3e-3), (2, 1e-3))}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of 32 tokens a step, one layer and two, a teacher that sees its rows a few times."""
    torch.set_num_threads(1)
    monkeypatch.setattr(pretraining, "LAYERS", {"base": 1, "teacher": 2})
    monkeypatch.setattr(pretraining, "BLOCKS_PER_STEP", 2)
    monkeypatch.setattr(pretraining, "BLOCK_TOKENS", 32)
    monkeypatch.setattr(pretraining, "TEACHING_ROWS_PER_STEP", 2)
    monkeypatch.setattr(pretraining, "_TOKENIZER_LINES", 3000)


@pytest.fixture
def tokenizer(tmp_path: Path) -> object:
    pretraining.train_tokenizer(tmp_path, seed=1)
    return tokenizers.from_sentencepiece(tmp_path / "tokenizer.model")


def test_the_same_seed_makes_the_same_two_models(tmp_path: Path):
    for run in ("one", "two"):
        pretraining.train_models(tmp_path / run, seed=1, train_rows=ROWS, rounds=ROUNDS)
    for name in ("base", "teacher"):
        one, two = (tmp_path / run / name for run in ("one", "two"))
        for file in ("model.safetensors", "tokenizer.model", "config.json"):
            assert (one / file).read_bytes() == (two / file).read_bytes()
    assert AutoModelForCausalLM.from_pretrained(one, dtype="auto").dtype is torch.bfloat16
    config = json.loads((one / "generation_config.json").read_text(encoding="utf-8"))
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "teacher")
    assert teacher.config.num_hidden_layers == 2


def losses(model: LlamaForCausalLM, examples: list[dict]) -> float:
    rows = [{key: torch.tensor([ids]) for key, ids in example.items()} for example in examples]
    with torch.no_grad():
        return sum(model(**row).loss.item() for row in rows) / len(rows)


def test_reading_lowers_the_loss(tmp_path: Path):
    processor = pretraining.train_tokenizer(tmp_path, seed=1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(pretraining.model_config(1))
    first = next(pretraining.token_blocks(processor, seed=5))
    before = model(input_ids=first, labels=first).loss.item()
    pretraining.pretrain(model, pretraining.token_blocks(processor, seed=1), steps=30, rate=3e-3)
    assert model(input_ids=first, labels=first).loss.item() < before - 1


def test_blocks_are_whole_documents_without_gaps(tmp_path: Path):
    processor = pretraining.train_tokenizer(tmp_path, seed=1)
    batches = pretraining.token_blocks(processor, seed=1)
    ids = torch.cat([next(batches).flatten() for _ in range(40)]).tolist()
    assert ids[0] == 1
    assert all(after == 1 for here, after in zip(ids, ids[1:], strict=False) if here == 2)
    document = processor.decode(ids[1 : ids.index(2)])
    assert all(" " in line for line in document.splitlines())


def test_teaching_supervises_answers_only_and_learns_them(tokenizer: object):
    torch.manual_seed(0)
    examples = [pretraining.encoded(tokenizer, row) for row in ROWS]
    kept = [label for label in examples[0]["labels"] if label != IGNORED]
    assert tokenizer.decode(kept[:-1]).strip() == "two" and kept[-1] == tokenizer.eos_token_id
    model = LlamaForCausalLM(pretraining.model_config(1))
    before = losses(model, examples)
    taught = pretraining.teach(model, examples * 10, seed=1)
    assert isinstance(taught, LlamaForCausalLM)
    assert losses(taught, examples) < before - 1
