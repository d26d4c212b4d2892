"""A tiny world for byte-level BPE: tokenizers with real models' pipelines, and Llamas on them."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from slimtune.models import tokenizers

torch.set_num_threads(1)
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HAN = "[一-龥ࠀ-一가-퟿]+"
_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (  # llama.cpp's source has three of these composed, which no other engine takes
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯ"
    "ꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
# llama.cpp's name: the steps as the models' own tokenizer.json lists them
PIPELINES = {
    "gpt-2": [pre.ByteLevel(False)],
    "smollm": [pre.Digits(individual_digits=True), pre.ByteLevel(False)],
    "qwen2": [
        pre.Split(Regex(_WORDS + r"\p{N}" + _REST), "isolated"),
        pre.ByteLevel(False, use_regex=False),
    ],
    "llama-bpe": [
        pre.Split(Regex(_WORDS + r"\p{N}{1,3}" + _REST), "isolated"),
        pre.ByteLevel(False, use_regex=False),
    ],
    "deepseek-llm": [
        *(
            pre.Split(Regex(r), "isolated")
            for r in (
                "[\r\n]",
                rf"\s?[{_CASED}]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                _HAN,
            )
        ),
        pre.Digits(individual_digits=True),
        pre.ByteLevel(False, use_regex=False),
    ],
    "deepseek-coder": [
        *(pre.Split(Regex(r), "isolated") for r in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN)),
        pre.Digits(individual_digits=True),
        pre.ByteLevel(False, use_regex=False),
    ],
    "deepseek-v3": [
        *(
            pre.Split(Regex(r), "isolated")
            for r in (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _PUNCTUATED)
        ),
        pre.ByteLevel(False, use_regex=False),
    ],
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"]
TEXT = [
    "The cat sat on the mat, and 12 dogs ran over the hill at 7.",
    "1. Boil 2 eggs.\n\n2. Wait 10 minutes.\n10. Serve 100 or 12345 of them.  22   333    4444",
    "def area(r):\n    return 3.14 * r ** 2",
    "今天天气很好，我们去公园散步。2024年12月31日",
    "It's what they'll say: don't, I've, WE'RE.",
] * 20


def byte_level(
    pipeline: str = "smollm", *, bos: str | None = None, puts_bos: bool = False, size: int = 480
) -> PreTrainedTokenizerFast:
    """A trained byte-level BPE; `bos` is named so, and put before every text with `puts_bos`."""
    backend = Tokenizer(models.BPE(ignore_merges=pipeline == "llama-bpe"))
    backend.pre_tokenizer = pre.Sequence(PIPELINES[pipeline])
    backend.decoder = decoders.ByteLevel()
    if pipeline == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if puts_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def write_bpe_llama(
    folder: Path, pipeline: str = "smollm", *, template: str | None = None, **tokenizer: object
) -> Path:
    """A random Llama in bf16 with such a tokenizer and `template`, a jinja source."""
    torch.manual_seed(0)
    spoken = byte_level(pipeline, **tokenizer)
    config = LlamaConfig(
        vocab_size=len(spoken),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=spoken.bos_token_id,
        eos_token_id=spoken.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    spoken.chat_template = template
    tokenizers.save_tokenizer(spoken, folder)
    return folder


def edit_json(file: Path, **changes: object) -> None:
    """Keys of a JSON file set to other values."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | changes), encoding="utf-8")
