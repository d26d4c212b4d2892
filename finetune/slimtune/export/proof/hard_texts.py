"""Texts on which tokenizers differ, asked in every proof: ids cost nothing, and rows may be tame.

Each stands for a rule that an export got wrong somewhere: digits one by one or in threes, blank
lines before numbered lists, runs of spaces, what counts as a number or a letter, contractions.
All of them are in NFC, for llama.cpp normalises no text. None holds `</s>`: it is one of the plain
tokens of Qwen2's vocabulary, and llama.cpp takes it for an end wherever a vocabulary has it.
"""

import logging

from transformers import PreTrainedTokenizerFast

from slimtune import prompts

_log = logging.getLogger(__name__)

TEXTS = (
    "Steps:\n\n1. Boil 2 eggs.\n2. Wait 10 minutes.\n\n\n10. Serve 100, 1000 or 12345 of them.",
    "\n1\n\n2\n \n3",
    "a  1   22    333     4444",
    "  leading,   inner \t\t tabs\tand trailing   ",
    "\n\n\n",
    " ",
    "x\r\ny\r\n\r\n z",
    "½ cup, ¾ spoon, x² + y³, Ⅷ, ①②",
    "٣٤٥ و ۱۲۳ और १२३",
    "3.14159, 1,000,000, 0x1F, 1e-10, 2024-12-31, +49 30 123456",
    "It's I'll you've WE'RE they'd don't 'quoted' o'clock ’tis",
    "🙂👍🏽 👨‍👩‍👧 🇩🇪❤️",
    "你好，世界！今天是2024年12月31日。“引号”、《书名》；……——",
    "日本語のテキスト、カタカナ。한국어 텍스트입니다.",
    "Ünïcödé, naïve Straße ÀÉÎ ÅNGSTRÖM Ελληνικά ΆΈΌ русский ЁЛКА",
    "שלום עולם مرحبا بالعالم สวัสดี नमस्ते",
    "def area(r):\n    return 3.14 * r ** 2  # πr²\n\n\tif x != 0 && y[1] -> {}; </tag>",
    "SELECT * FROM t WHERE a<>b AND c='d''e';--\n```json\n{\"k\": [1, 2.5, null]}\n```",
    "https://example.org/a-b_c?d=1&e=%20#f user@example.org C:\\temp\\new.txt",
    "!!!???...,,,;;; --- === *** ### ~~~ ((([[[{{{ }}}]]])))",
    "CamelCaseWORD snake_case ALLCAPS iPhone 4th 2nd a1b2c3",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f",
    "<s> [INST] <|im_start|> <|endoftext|> <unk>",
)


# Ordinary tokens of these names llama.cpp makes control tokens of its own accord, whoever wrote the
# file (src/llama-vocab.cpp): Qwen's vocabulary has </s> among its words.
_CALLED_CONTROL = (
    "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|eot_id|>", "<|im_end|>", "<|end|>",
    "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|return|>", "<|call|>",
    "<end_of_utterance>",
)  # fmt: skip


def _taken(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Ordinary tokens that llama.cpp takes for control tokens; a caution names them."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    words = tokenizer.get_vocab()
    found = [name for name in _CALLED_CONTROL if name in words and name not in added]
    if found:
        _log.warning(
            "caution: %s stands in this vocabulary as an ordinary token, and llama.cpp reads it as "
            "an end: a text that holds it gets other ids there",
            " ".join(found),
        )
    return found


def hard_texts(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, list[int]]]:
    """The texts, and each special or added token amid others, with the tokenizer's ids.

    BOS first where the tokenizer puts it, and no EOS: as a prompt is made.
    """
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    spoken = [text for token in tokens for text in (f"a{token}b", f"1 {token} 2\n{token}\n\n3")]
    first = [tokenizer.bos_token_id] if prompts.puts_bos(tokenizer) else []
    texts = [*TEXTS, *spoken]
    for name in _taken(tokenizer):
        texts = [text.replace(name, "") for text in texts]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return [(text, first + ids) for text, ids in zip(texts, encoded, strict=True)]
