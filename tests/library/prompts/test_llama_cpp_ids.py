"""The promise itself: llama.cpp, given the rendered text, makes the ids that training used."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slimtune import prompts
from slimtune.export.gguf_writer import write_gguf
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers

TURNS = [
    {"role": "system", "content": "Be brief.\n请简短。"},
    {"role": "user", "content": "Write  area(r):\n\tpi\n\n    indented [INST] ½ 🦙"},
    {"role": "assistant", "content": "def area(r):\n    return 3.14 * r ** 2"},
    {"role": "user", "content": "今天天气很好吗？"},
    {"role": "assistant", "content": "# 天气\n\n|a|b|\n|---|--:|"},
]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory, sentencepiece_tokenizer):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=len(sentencepiece_tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizers.save_tokenizer(sentencepiece_tokenizer, folder)
    write_gguf(folder, folder / "tiny.gguf", "F16", threads=1)
    with LlamaCpp(folder / "tiny.gguf") as model:
        yield model


@pytest.mark.parametrize("name", ["llama2", "alpaca", "chatml"])
@pytest.mark.parametrize("messages", [TURNS, TURNS[1:], TURNS[:3], TURNS[1:3]])
def test_ids_of_prompt_and_conversation(llama_cpp, sentencepiece_tokenizer, name, messages):
    template = prompts.template(name)

    def ids(messages, **more):
        text = prompts.render(messages, template, bos_token="<s>", eos_token="</s>", **more)
        return llama_cpp.tokenize(text.removeprefix("<s>"))  # as Ollama: BOS is added to the ids

    prompt = prompts.encode_prompt(sentencepiece_tokenizer, messages, template)
    assert prompt == ids(messages[:-1], add_generation_prompt=True)
    conversation = prompts.encode(sentencepiece_tokenizer, messages, template)["input_ids"]
    assert conversation == ids(messages)[: len(conversation)]
