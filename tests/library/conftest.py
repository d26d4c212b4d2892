"""A tiny random Llama and a word tokenizer: enough to generate, score and compare; two servers."""

import random
from collections.abc import Iterator

import pytest
import torch
from fake_servers import FakeServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(SPECIAL)}
    vocabulary |= {f"w{number}": number for number in range(len(SPECIAL), 61)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    )


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    """Large random weights, so that its choices are decided and vary; it does say EOS at times."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Forty prompts of 2 to 24 tokens."""
    chance = random.Random(1)
    return [[1, *chance.choices(range(3, 61), k=chance.randint(1, 23))] for _ in range(40)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """One that speaks as OpenAI's do."""
    with FakeServer() as running:
        yield running


@pytest.fixture
def ollama(monkeypatch) -> Iterator[FakeServer]:
    """One that speaks as Ollama does, where Ollama is looked for."""
    with FakeServer("llama3.2:latest", ollama=True) as running:
        monkeypatch.setenv("OLLAMA_HOST", running.host)
        yield running
