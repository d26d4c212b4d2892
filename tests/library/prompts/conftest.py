"""Tokenizers: two tiny ones (SentencePiece, as Llama-2 has; bytes, as Qwen has) and larger ones."""

import pytest
import sentencepiece
from originals import DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slimtune.models import tokenizers
from slimtune.sample.parts import WEIGHTS

TEXT = [
    "Below is an instruction that describes a task. Write a response.",
    "### Instruction: ### Response: [INST] [/INST] <<SYS>> <</SYS>>",
    "def area(r):\n    return 3.14 * r ** 2",
    "今天天气很好，我们去公园散步。",
] * 30


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=440,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return tokenizers.load_tokenizer(folder)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Like Qwen: ChatML tokens, <|im_end|> as EOS, no BOS at all."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def sample_tokenizer() -> PreTrainedTokenizerFast:
    """The sample's own: 1,024 pieces of a bilingual world."""
    return tokenizers.load_tokenizer(WEIGHTS / "base")


@pytest.fixture(scope="session")
def llama2_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizers.load_tokenizer(DATA / "llama2-tokenizer")
