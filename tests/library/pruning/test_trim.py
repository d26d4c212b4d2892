"""The vocabulary cut to the tokens in use: the same pieces, any text, the same logits."""

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_bpe
import torch
from foreign_chat_templates import QWEN2
from running import refused, succeeds
from sentencepiece import SentencePieceProcessor
from tiny_adapters import trained
from tiny_folders import write_tiny_llama
from tiny_pipelines import write_bpe_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from slimtune.errors import InputError, QualityError
from slimtune.models.adapters import Adapter
from slimtune.models.origin import fingerprint
from slimtune.models.weights import Checkpoint
from slimtune.pruning import kept_tokens, trim
from slimtune.pruning.outcome import CARD

BEGIN = "<|begin_of_text|>"
MODELS = {
    "sentencepiece": write_tiny_llama,
    "tied": lambda at: tiny_bpe.write_bpe_llama(at, "qwen2", family="qwen2", **TIED),
    "llama-3": lambda at: write_bpe_llama(
        at, "llama-bpe", template=QWEN2, bos=BEGIN, puts_bos=True
    ),
}
TIED = {"tie_word_embeddings": True}
ROWS = [
    ("The cat sat on the mat?", "12 dogs ran over the hill."),
    ("How is the weather? 今天天气很好", "def area(r): ½ 👍"),
] * 8
ANY = "Zürich, \u0000\t\n  日本語 🦙 \ufffd ﬁ"


@pytest.fixture(scope="module", params=MODELS)
def world(request, tmp_path_factory) -> Path:
    """A folder with `model`, `rows.jsonl`, and `out`, the model with a smaller vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    MODELS[request.param](folder / "model")
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in ROWS
    ]
    lines = [json.dumps({"messages": one}) for one in turns]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    succeeds("model_pruning", *flags(folder), "--ffn-ratio", 0)
    return folder


def flags(world: Path, output: str = "out", rows: str = "rows.jsonl") -> list:
    found = ["--model-path", world / "model", "--train-data", world / rows]
    return [*found, "--output-dir", world / output, "--vocabulary", "trim"]


def kept(world: Path) -> list[int]:
    return json.loads((world / "out/vocabulary_map.json").read_text())["kept"]


def test_what_is_in_use_is_cut_into_the_same_tokens_and_all_else_is_spelled(world) -> None:
    before, after = (AutoTokenizer.from_pretrained(world / name) for name in ("model", "out"))
    assert 256 < len(after) == len(kept(world)) < len(before)
    for text in (text for row in ROWS for text in row):
        assert [kept(world)[id] for id in after(text).input_ids] == before(text).input_ids
    spelled = after("walked the garden").input_ids
    assert len(spelled) > len(before("garden").input_ids)
    for text in (ANY, "walked the garden"):
        found = after.decode(after(text, add_special_tokens=False).input_ids)
        assert found == before.decode(before(text, add_special_tokens=False).input_ids)
    names = ("bos_token", "eos_token", "pad_token", "chat_template")
    assert [getattr(after, n) for n in names] == [getattr(before, n) for n in names]


def test_logits_of_kept_tokens_and_the_loss_are_those_of_the_model(world) -> None:
    before, after = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32)
        for name in ("model", "out")
    )
    old = torch.tensor(kept(world))
    ids = torch.arange(40).reshape(2, 20)
    logits = before(old[ids]).logits
    torch.testing.assert_close(after(ids).logits, logits[..., old])
    assert after.config.vocab_size == len(old)
    ends = after.generation_config.eos_token_id
    assert [old[id] for id in torch.tensor([ends])] == [before.generation_config.eos_token_id]
    assert after.config.tie_word_embeddings == before.config.tie_word_embeddings
    run = json.loads((world / "out/run.json").read_text())["metrics"]
    saved = run["parameters_before"] - run["parameters_after"]
    heads = 1 if before.config.tie_word_embeddings else 2
    gone = before.config.vocab_size - len(old)
    assert saved == heads * gone * before.config.hidden_size
    lost = math.log(run["perplexity_after"] / run["perplexity_before"])
    assert run["trimmed"]["loss_difference"] == pytest.approx(lost) and lost < 0
    assert run["trimmed"]["rows"] == len(ROWS) and run["trimmed"]["difference"] < 1e-5
    assert f"all {len(ROWS)} training rows keep" in (world / "out" / CARD).read_text()


def test_sentencepiece_itself_cuts_the_rows_as_before(world) -> None:
    if not (world / "model/tokenizer.model").is_file():
        assert not (world / "out/tokenizer.model").exists()
        return
    before, after = (
        SentencePieceProcessor(model_file=str(world / name / "tokenizer.model"))
        for name in ("model", "out")
    )
    for text in (text for row in ROWS for text in row):
        assert after.encode(text, out_type=str) == before.encode(text, out_type=str)
    assert after.vocab_size() == len(kept(world)) and after.decode(after.encode(ANY[8:])) == ANY[8:]
    assert (after.bos_id(), after.eos_id()) == (1, 2)


def test_llama_cpp_cuts_text_as_the_trimmed_tokenizer_does(world) -> None:
    words = ("--model-path", world / "out", "--output-dir", world / "gguf", "--model-name", "m")
    words += ("--quantization", "F16", "--verify", "quick", "--train-data", world / "rows.jsonl")
    assert "hard texts" in succeeds("convert_to_gguf", *words).out


def test_with_neurons_in_one_run_and_general_words_of_a_language(world) -> None:
    few = ("--calibration-rows", 16, "--calibration-length", 128, "--languages", "en")
    succeeds("model_pruning", *flags(world, "both"), *few, "--ffn-ratio", 0.33)
    run = json.loads((world / "both/run.json").read_text())["metrics"]
    assert run["proven"].keys() == {"vocabulary", "width"}
    assert run["ffn_after"] < run["ffn_before"]
    assert len(kept(world)) < run["vocabulary_after"] < run["vocabulary_before"]
    AutoModelForCausalLM.from_pretrained(world / "both")
    assert not (world / "both/scratch").exists()


def test_rows_of_the_embedding_in_the_wrong_place_are_a_failed_proof(world, monkeypatch) -> None:
    right = trim.write_pruned

    def wrong(checkpoint, shape, keep, output) -> None:
        order = [*range(len(keep.vocabulary) - 2), -1, -2]
        right(checkpoint, shape, replace(keep, vocabulary=keep.vocabulary[order]), output)

    monkeypatch.setattr(trim, "write_pruned", wrong)
    words = [*flags(world, "wrong"), "--ffn-ratio", 0]
    refused(5, "does not answer", "model_pruning", *words)
    assert not (world / "wrong").exists()


def test_a_row_in_other_tokens_is_found(world) -> None:
    before = AutoTokenizer.from_pretrained(world / "model")
    texts = kept_tokens.Texts([], ["The cat sat on the mat."], "chatml")
    every = list(range(len(before)))
    trim.require_same_pieces(texts, before, before, every)
    with pytest.raises(QualityError, match="text 1 is cut into other tokens"):
        trim.require_same_pieces(texts, before, before, every[::-1])


BEFORE = {
    "by the fingerprint in its card": {},
    "by its tokenizer": {},
    "by the rows of its embedding": {"modules_to_save": ["embed_tokens"]},
}


def trained_before(known: str, world: Path, folder: Path) -> Path:
    adapter = trained(world / "model", folder, **BEFORE[known])
    card = f"---\nbase_fingerprint: {fingerprint(Checkpoint(world / 'model'))}\n---\n"
    (adapter / "README.md").write_text(card if "card" in known else "")
    if "tokenizer" in known:
        shutil.copyfile(world / "model/tokenizer.json", adapter / "tokenizer.json")
    return adapter


@pytest.mark.parametrize("known", BEFORE)
def test_an_adapter_trained_before_is_refused(known, world, tmp_path) -> None:
    adapter = Adapter(trained_before(known, world, tmp_path / "adapter"))
    adapter.require_base(Checkpoint(world / "model"))
    with pytest.raises(InputError, match="trained before the vocabulary"):
        adapter.require_base(Checkpoint(world / "out"))
    after = Adapter(trained(world / "out", tmp_path / "after", **BEFORE[known]))
    after.require_base(Checkpoint(world / "out"))


def test_such_an_adapter_is_merged_as_its_refusal_says(world, tmp_path) -> None:
    if "tied" not in world.name:  # one kind, for it takes seconds
        return
    adapter = trained_before("by its tokenizer", world, tmp_path / "adapter")
    more = ("--output-dir", tmp_path / "merged", "--device", "cpu")
    words = ("--base-model", world / "out", "--lora-model", adapter, "--merge", *more)
    said = refused(3, "trained before the vocabulary", "evaluate_model", *words)
    script, cure = re.search(r"finetune/(\w+)\.py (.+--merge)", said[-1]).groups()
    succeeds(script, *shlex.split(cure), *more)
    trim = ("--vocabulary", "trim", "--train-data", world / "rows.jsonl", "--ffn-ratio", 0)
    merged = ("--model-path", tmp_path / "merged", "--output-dir", tmp_path / "trimmed")
    succeeds("model_pruning", *merged, *trim)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "trimmed")) == len(kept(world))


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, "pruning.languages", ["--vocabulary", "keep", "--languages", "en"]),
        (2, "word lists for en and zh; for another", ["--languages", "en,tlh"]),
        (3, "vocabulary_text names it", ["--vocabulary-text", "gone.txt"]),
    ],
)
def test_settings_that_say_nothing_are_refused(code, words, more, world) -> None:
    refused(code, words, "model_pruning", *flags(world, "odd"), *more)


def test_nothing_in_use_is_refused(world, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model-path", world / "model", "--output-dir", "out", "--vocabulary", "trim"]
    (tmp_path / "config.yaml").write_text("training:\n  train_data: gone.jsonl\n")
    words += ["--config", "config.yaml"]
    refused(2, "nothing says which tokens are in use", "model_pruning", *words)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("Unigram", models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
        ("WordPiece", models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
        ("no tokens for single bytes", models.BPE({"a": 0, "b": 1}, [])),
    ],
)
def test_other_kinds_of_tokenizers_are_refused_by_name(kind, model) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match="cannot be trimmed") as error:
        kept_tokens.Pieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert kind in str(error.value.__dict__)
