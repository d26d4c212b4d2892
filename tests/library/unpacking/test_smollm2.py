"""A real GGUF that others made: as a base, as a model in a comparison, and in the chat."""

import json
import math
from pathlib import Path

import pytest
import torch
from real_models import SMOLLM2, needs_smollm2
from running import compared_here, succeeds
from transformers import AutoModelForCausalLM

from slimtune.config import Config, ModelSection
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.inference.token_losses import batch_losses
from slimtune.models import tokenizers
from slimtune.unpacking.unpack import unpacked

pytestmark = [needs_smollm2, pytest.mark.slow]

NUMBERED = "\n\n".join(f"{i}. Item {i * 37} costs {i * 1.5:.2f} euros" for i in range(1, 10))
PROSE = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")[:700]
HARD = [
    NUMBERED,
    "\n\n\n1.  22   333    4444\t5 ½ ¾ x² Ⅷ ٣٤٥ १२३ 1,000,000 0x1F 2024-12-31",
    "It's I'll you've WE'RE they'd don't   \n \n  def f(x):\n\treturn 3.14 * x ** 2\r\n\r\n",
    "你好，世界！今天是2024年。《书名》 日本語 한국어 🙂👍🏽 👨\u200d👩\u200d👧 a\u00a0b\u3000c",
    "<|im_start|>user\n1<|im_end|>2 <|endoftext|>\n\n<repo_name>x <file_sep>",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    config = Config(model=ModelSection(unpacked_dir=folder / "models/unpacked"))
    return unpacked(SMOLLM2, SMOLLM2.name.removesuffix(".gguf"), config)


def test_ids_and_likelihoods_are_llama_cpps(base) -> None:
    tokenizer = tokenizers.load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert model.config.tie_word_embeddings and model.config.rms_norm_eps == 1e-5
    with LlamaCpp(SMOLLM2, context=512, threads=1) as gguf:
        for text in HARD:
            assert gguf.tokenize(text) == tokenizer(text).input_ids, text
        for text in (PROSE, NUMBERED):
            ids = tokenizer(text).input_ids
            ((_, found),) = gguf.losses([(ids[:1], ids[1:])])
            (own,) = batch_losses(model, [{"input_ids": ids, "labels": [-100, *ids[1:]]}])
            perplexities = [math.exp(one.total.nats / one.total.tokens) for one in (found, own)]
            assert perplexities[0] == pytest.approx(perplexities[1], rel=0.01)


ROWS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Count from 1 to 5.", "1, 2, 3, 4, 5"),
]


def settings_for(base: Path) -> tuple[str, Path]:
    folder = base.parents[2]
    roles = ("user", "assistant")
    turns = [[dict(role=r, content=c) for r, c in zip(roles, row, strict=True)] for row in ROWS]
    lines = [json.dumps({"id": f"{i}", "messages": one}) for i, one in enumerate(turns)]
    text = "\n".join(lines) + "\n"
    (folder / "rows_test.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"model: {{base_model: {SMOLLM2}, device: cpu}}\n"
        "training: {train_data: rows_train.jsonl, max_length: 128}\n"
        "generation: {max_new_tokens: 12}\n"
        "evaluation: {lora_model: null, output: out/r.csv, test_data: rows_test.jsonl}\n"
    )
    return "--config", folder / "config.yaml"


def test_it_stands_beside_the_folder_that_it_became(base) -> None:
    with compared_here():
        ran = succeeds(
            "evaluate_model", *settings_for(base), "--models", SMOLLM2, "--dtype", "float32"
        )
    assert "unpacking" not in ran.err  # it was, by the fixture
    found = json.loads((base.parents[2] / "out/r_metrics.json").read_text())
    folder, file = found["models"]
    assert file["perplexity"]["score"] == pytest.approx(folder["perplexity"]["score"], rel=0.02)
    assert file["perplexity"]["score"] < 20
    assert not {"tokenizer", "own_template"} & {one["kind"] for one in found["cautions"]}


def test_it_talks_by_itself(base) -> None:
    nowhere = ("--base-model", "./no-base", "--lora-model", "./no-adapter")
    words = ("--interactive", "--models", SMOLLM2, *nowhere)
    asked = "What is the capital of Germany?\n/exit\n"
    ran = succeeds("evaluate_model", *settings_for(base), *words, stdin=asked)
    assert "The capital of Germany is Berlin." in ran.out
