"""Tiny model folders with a byte-level BPE, as most models of today have one."""

from pathlib import Path

import torch
from tiny_folders import TEXT
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from slimtune import prompts
from slimtune.models import tokenizers

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_SPLIT.format(digits=digits)), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_of])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


# llama.cpp's name of a rule -> the rule.
RULES = {
    "gpt-2": _gpt2,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _gpt2()]),
    "qwen2": lambda: _split(r"\p{N}"),
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
}


def write_bpe_llama(
    folder: Path, rule: str = "gpt-2", *, family: str = "llama", bos: str | None = None, **config
) -> Path:
    """A random Llama, Qwen2 or Qwen3 of 2 layers in float32, ChatML, with digits in its text."""
    size = _write_tokenizer(folder, rule, bos)
    torch.manual_seed(0)
    made = _CONFIGS[family](**SHAPE | config, vocab_size=size, eos_token_id=1, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(made)
    for name, values in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(values)
        elif name.endswith("norm.weight"):
            torch.nn.init.normal_(values, mean=1.0, std=0.1)
    model.save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path, rule: str, bos: str | None) -> int:
    backend = Tokenizer(models.BPE(ignore_merges=rule == "llama-bpe"))
    backend.pre_tokenizer = RULES[rule]()
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", *([bos] if bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXT, "1. one\n\n2. two\n\n10. 2024\n  12 345 ½ ٣"] * 20, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = prompts.template("chatml")
    tokenizers.save_tokenizer(tokenizer, folder)
    return len(tokenizer)
