"""The vocabulary of a byte-level BPE tokenizer (Llama-3, Qwen2), read from its tokenizer.json.

llama.cpp splits text before merging by rules compiled into it, named `tokenizer.ggml.pre`. Which
name is right is told by the regular expression in the file itself.
"""

from pathlib import Path

from gguf import TokenType

from slimtune.console import InputError
from slimtune.export.architecture import Unsupported
from slimtune.models.folders import read_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The regular expression of pre_tokenizer -> llama.cpp's name; None: ByteLevel's own, GPT-2's
_SPLITS = {
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _WORDS + r"\p{N}" + _REST: "qwen2",
    None: "gpt-2",
}

Token = tuple[str, TokenType]


def read_bpe(folder: Path) -> tuple[str, dict[int, Token]]:
    """(llama.cpp's name of the splitting rule, id -> (text, type)).

    Raises InputError where tokenizer.json is no byte-level BPE, Unsupported where it splits text in
    a way that SlimTune does not know.
    """
    file = folder / "tokenizer.json"
    content = read_json(file)
    steps = _steps(content.get("pre_tokenizer"))
    if content["model"].get("type") != "BPE" or not any(s["type"] == "ByteLevel" for s in steps):
        raise InputError(
            f"{folder}: no tokenizer.model",
            "a GGUF needs the scores of the SentencePiece model; tokenizer.json does not hold them",
            "copy tokenizer.model from the base model into this folder",
        )
    split = _split(steps)
    if split not in _SPLITS:
        raise Unsupported(
            f"{file}: splits text by a rule that SlimTune does not know",
            str(split),
            "set LLAMA_CPP_DIR to a checkout of llama.cpp, whose converter knows more of them",
        )
    tokens = {index: (text, TokenType.NORMAL) for text, index in content["model"]["vocab"].items()}
    for added in content.get("added_tokens", []):
        kind = TokenType.CONTROL if is_special(added) else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    return _SPLITS[split], tokens


def is_special(token: dict) -> bool:
    """Whether an added token is a control token, by its flag or its looks."""
    text = token["content"]
    control = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    bars = (text.startswith("<|") and text.endswith("|>")) or (
        text.startswith("<｜") and text.endswith("｜>")
    )
    unused = text.startswith("<unused") and text.endswith(">")
    return bool(token.get("special")) or control or bars or unused


def _steps(pre_tokenizer: dict | None) -> list[dict]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer.get("pretokenizers") or [pre_tokenizer]


def _split(steps: list[dict]) -> str | None:
    patterns = [step["pattern"] for step in steps if step["type"] == "Split"]
    return patterns[0].get("Regex", str(patterns[0])) if patterns else None
