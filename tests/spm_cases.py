"""Texts that tokenizers get wrong, with the ids that are right: whitespace, digits, bytes, scripts.

SentencePiece itself says what is right for the sample's tokenizer; for Llama-2's, where it is
there, what llama.cpp keeps as its own reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from originals import DATA, originals

from slimtune.sample.parts import WEIGHTS

NAMES = ["sample", *originals("llama-spm-cases", "llama2")]
TEXTS = [
    "", " ", "  ", "    ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", " \n  \n\t\n   x",
    "What is the weather?", " What is the weather?", "  What", "    What\n      is", "trailing  ",
    "今天天气很好，我们去公园散步。", "全角　空格", "繁體字與简体字", "ひらがな カタカナ", "한국어",
    "Größe, naïve, żółć", "нещо на български", "ភាសាខ្មែរ", "שלום عربي", "e\u0301 is not é",
    "🦙 and 👩‍👩‍👧‍👦 and ✅", "\u200b\u200d\ufeff", "½ ¾ ² ™", "0 7 42 365 2026 31415 1234567890",
    "3.14 1,000,000 -5 1e-3", "def area(r):\n    return 3.14 * r ** 2\n", "<b>&amp;</b> {}",
    "[INST] <<SYS>>\n<</SYS>>\n\n [/INST]", "### Instruction:\n\n### Response:\n", "!!!!!! ....",
    "a\rb\r\nc", "'s 're 'LL don't", "CamelCase snake_case kebab-case", "http://example.org/?q=1&r=%20",
    "w048 7tuijk dsdfhu", "\x07 bell and \x1f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]  # fmt: skip


@dataclass(frozen=True)
class SpmCases:
    """A folder with tokenizer.model, and texts with their ids, BOS not among them."""

    folder: Path
    texts: list[str]
    ids: list[list[int]]

    def __iter__(self) -> Iterator[tuple[str, list[int]]]:
        return zip(self.texts, self.ids, strict=True)


def cases(name: str) -> SpmCases:
    if name == "sample":
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(WEIGHTS / "base" / "tokenizer.model")
        )
        return SpmCases(WEIGHTS / "base", TEXTS, [model.encode(text) for text in TEXTS])
    folder, number = DATA / "llama-spm-cases", 46
    told = (folder / "cases.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / "cases.out").read_text(encoding="utf-8").split("\n")
    ids = [[int(word) for word in line.split()] for line in lines[:number]]
    return SpmCases(DATA / "llama2-tokenizer", told[:number], ids)
