"""A byte-level BPE is read whole: llama.cpp's ids are the tokenizer's on every hard text."""

import json

import pytest
from tiny_pipelines import PIPELINES, byte_level, edit_json, write_bpe_llama

from slimtune import prompts
from slimtune.errors import QualityError
from slimtune.export import pretokenizers
from slimtune.export.architecture import Unsupported
from slimtune.export.gguf_writer import write_gguf
from slimtune.export.preflight import preflight
from slimtune.export.proof.hard_texts import TEXTS, hard_texts
from slimtune.export.proof.reference import build_reference
from slimtune.export.proof.verify import verify
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers

CONVERSATION = [{"role": "user", "content": "1 egg"}]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_known_pipeline_gives_the_tokenizers_ids(pipeline, tmp_path) -> None:
    folder = write_bpe_llama(tmp_path / "model", pipeline)
    assert preflight(folder, "F16").vocabulary.pre == pipeline
    write_gguf(folder, tmp_path / "m.gguf", "F16")
    texts = hard_texts(tokenizers.load_tokenizer(folder))
    assert len(texts) > len(TEXTS)
    with LlamaCpp(tmp_path / "m.gguf", context=64, threads=1) as model:
        assert {text: model.tokenize(text) for text, _ in texts} == dict(texts)


def test_digits_read_as_gpt_2s_are_found_by_the_proof(tmp_path, monkeypatch) -> None:
    """`[Digits, ByteLevel]` was taken for `[ByteLevel]`, and no row had two digits side by side."""
    folder = write_bpe_llama(tmp_path / "model", "smollm")
    steps = (pretokenizers._DIGITS, pretokenizers._GPT2)
    monkeypatch.setitem(pretokenizers._NAMES, (steps, False), "gpt-2")
    write_gguf(folder, tmp_path / "m.gguf", "F16")
    reference = build_reference(folder, [CONVERSATION], "chatml", compared=0)
    with pytest.raises(QualityError, match="other tokens than in training"):
        verify(tmp_path / "m.gguf", reference, "F16", threads=1)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FOREIGN = {
    "digits in groups": {"pre_tokenizer": [{"type": "Digits", "individual_digits": False}, BYTES]},
    "a prefix space": {"pre_tokenizer": [BYTES | {"add_prefix_space": True}]},
    "punctuation": {"pre_tokenizer": [{"type": "Punctuation", "behavior": "Contiguous"}, BYTES]},
    "another order": {"pre_tokenizer": [BYTES, {"type": "Digits", "individual_digits": True}]},
    "a rule of its own": {
        "pre_tokenizer": [
            {
                "type": "Split",
                "pattern": {"Regex": r"\p{L}+|\p{N}{1,2}"},
                "behavior": "Isolated",
                "invert": False,
            },
            BYTES | {"use_regex": False},
        ]
    },
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "whole words": {"model": {"ignore_merges": True}},
    "dropout": {"model": {"dropout": 0.1}},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_every_other_chain_is_refused_by_what_is_foreign_in_it(name, tmp_path) -> None:
    byte_level("smollm").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    changes = dict(FOREIGN[name])
    content = json.loads(file.read_text(encoding="utf-8"))
    if "pre_tokenizer" in changes:
        changes["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": changes["pre_tokenizer"]}
    if "model" in changes:
        changes["model"] = content["model"] | changes["model"]
    edit_json(file, **changes)
    content = json.loads(file.read_text(encoding="utf-8"))
    with pytest.raises(Unsupported, match="rules that SlimTune does not know"):
        pretokenizers.pre_tokenizer_name(file, content)


def test_what_changes_no_id_changes_no_name(tmp_path) -> None:
    """Sequences in sequences, offsets, and the spelling of GPT-4's ports."""
    byte_level("qwen2").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    split, last = content["pre_tokenizer"]["pretokenizers"]
    ported = split | {"behavior": "Removed", "invert": True}
    nested = {"type": "Sequence", "pretokenizers": [ported]}
    steps = [nested, last | {"trim_offsets": not last["trim_offsets"]}]
    content |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "normalizer": None}
    assert pretokenizers.pre_tokenizer_name(tmp_path, content) == "qwen2"


def test_an_ordinary_token_that_llama_cpp_takes_for_an_end_is_a_caution(tmp_path, caplog) -> None:
    """Qwen's vocabulary has </s> among its words: every export of a Qwen failed its proof."""
    folder = write_bpe_llama(tmp_path / "model", "qwen2", template=prompts.template("chatml"))
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    last = max(model["vocab"], key=model["vocab"].get)
    model["vocab"]["</s>"] = model["vocab"].pop(last)
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) != last]
    edit_json(folder / "tokenizer.json", model=model)
    write_gguf(folder, tmp_path / "m.gguf", "F16")
    tokenizer = tokenizers.load_tokenizer(folder)
    with LlamaCpp(tmp_path / "m.gguf", context=64, threads=1) as gguf:
        assert gguf.tokenize("</s>") == [model["vocab"]["</s>"]] != tokenizer("</s>").input_ids
        assert {text: gguf.tokenize(text) for text, _ in hard_texts(tokenizer)} == dict(
            hard_texts(tokenizer)
        )
    assert "</s> stands in this vocabulary as an ordinary token" in caplog.text
    caplog.clear()
    hard_texts(tokenizers.load_tokenizer(write_bpe_llama(tmp_path / "plain", "qwen2")))
    assert not caplog.text
