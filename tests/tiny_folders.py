"""A tiny world for export tests: model folders with a tokenizer.model trained on the spot."""

import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from slimtune import prompts
from slimtune.models import tokenizers

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY = 400
TEXT = [
    "Below is an instruction that describes a task. Write a response.",
    "The cat sat on the mat, and 12 dogs ran over the hill at 7.",
    "def area(r):\n    return 3.14 * r ** 2",
    "今天天气很好，我们去公园散步。",
] * 20


def write_tiny_llama(
    folder: Path, *, hidden: int = 256, template: str | None = "llama2", **config: object
) -> Path:
    """A random Llama (2 layers, 4 heads in 2 groups) in bf16 with tokenizer and chat template."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        # Far from the usual 0.02: logits with winners, so that greedy text is no matter of luck.
        "initializer_range": 0.15,
        **config,
    }
    mistral = shape.pop("mistral", False)
    kinds = (MistralConfig, MistralForCausalLM) if mistral else (LlamaConfig, LlamaForCausalLM)
    kinds[1](kinds[0](**shape)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = tokenizers.from_sentencepiece(_tokenizer_model())
    tokenizer.chat_template = prompts.template(template) if template else None
    tokenizers.save_tokenizer(tokenizer, folder)
    return folder


def swap_two_tokens(folder: Path) -> Path:
    """Gives the model of `folder` a vocabulary of its own: two tokens change their ids."""
    (folder / "tokenizer.model").unlink()  # it would count more than tokenizer.json
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


@cache
def _tokenizer_model() -> Path:
    folder = Path(mkdtemp(prefix="tiny-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"
