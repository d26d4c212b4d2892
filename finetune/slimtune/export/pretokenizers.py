"""How a byte-level BPE's tokenizer.json prepares a text, and llama.cpp's name for just that.

llama.cpp splits a text before merging by rules compiled into it, named `tokenizer.ggml.pre`
(ggml-org/llama.cpp, src/llama-vocab.cpp). A name fits where the whole chain does: normaliser,
every step of the pre-tokenizer, and how merges are used. Read in part, `[Digits, ByteLevel]` looks
like GPT-2's, and numbers get other ids than in training (perplexity on numbered lists 1.43, not
1.09). Whatever is not one of these is refused.
"""

import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimtune.export.architecture import Unsupported

_log = logging.getLogger(__name__)

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (  # letters with upper and lower case, as deepseek-llm lists them
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯ"
    "ꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN = "[一-龥ࠀ-一가-퟿]+"

Step = tuple[str, Any]  # ("split", pattern), ("digits", one by one), ("bytes", with GPT-2's rule)
_DIGITS, _BYTES, _GPT2 = ("digits", True), ("bytes", False), ("bytes", True)


def _splits(*patterns: str) -> tuple[Step, ...]:
    return tuple(("split", unicodedata.normalize("NFC", pattern)) for pattern in patterns)


# (steps, whether whole words skip the merges) -> llama.cpp's name.
_NAMES: dict[tuple[tuple[Step, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((*_splits(_WORDS + r"\p{N}" + _REST), _BYTES), False): "qwen2",
    ((*_splits(_WORDS + r"\p{N}{1,3}" + _REST), _BYTES), True): "llama-bpe",
    ((*_splits(_WORDS + r"\p{N}{1,3}" + _REST), _BYTES), False): "smaug-bpe",
    (
        (
            *_splits(
                "[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN
            ),
            _DIGITS,
            _BYTES,
        ),
        False,
    ): "deepseek-llm",
    (
        (*_splits("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN), _DIGITS, _BYTES),
        False,
    ): "deepseek-coder",
    ((*_splits(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _PUNCTUATED), _BYTES), False): "deepseek-v3",
}


# In NFC, in which patterns are compared, this one has empty ranges and is no regular expression.
_COMPARED_ONLY = {"deepseek-llm"}
# Its other names for the same, which files of others bear.
_SAME = {
    "phi-2": "gpt-2",
    **dict.fromkeys(("starcoder", "refact", "command-r"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3"), "llama-bpe"),
    "dbrx": "smaug-bpe",
    "deepseek-r1-qwen": "qwen2",
}


def pre_tokenizer_of(name: str) -> tuple[list[dict[str, Any]], bool] | None:
    """The steps of a tokenizer.json that split as `name` says, and whether whole words skip merges.

    None for a name that SlimTune does not know.
    """
    chains = {known: chain for chain, known in _NAMES.items() if known not in _COMPARED_ONLY}
    chain = chains.get(_SAME.get(name, name))
    return None if chain is None else ([_written(*step) for step in chain[0]], chain[1])


def known_names() -> list[str]:
    """Those that `pre_tokenizer_of` knows."""
    return sorted({*_NAMES.values(), *_SAME} - _COMPARED_ONLY)


def byte_level(use_regex: bool, **more: bool) -> dict[str, Any]:
    """The step that turns a text into the characters that stand for its bytes."""
    usual = {"add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel", **usual, **more}


def _written(kind: str, value: Any) -> dict[str, Any]:
    """A step of `_NAMES` in the words of tokenizer.json."""
    if kind == "bytes":
        return byte_level(value)
    if kind == "digits":
        return {"type": "Digits", "individual_digits": value}
    pattern = {"Regex": value}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def pre_tokenizer_name(file: Path, content: dict) -> str:
    """llama.cpp's name of how the tokenizer.json `content` splits a text.

    Raises Unsupported for a chain that has none, naming what is foreign in it.
    """
    _require_plain_merges(file, content["model"])
    _require_normalizer(file, content.get("normalizer"))
    steps = tuple(_step(file, one) for one in _flat(content.get("pre_tokenizer")))
    whole_words = bool(content["model"].get("ignore_merges"))
    name = _NAMES.get((steps, whole_words))
    if name is None:
        words = " > ".join(f"{kind} {value}" for kind, value in steps)
        raise _foreign(file, f"{words}; ignore_merges {str(whole_words).lower()}")
    return name


def is_byte_level(content: dict) -> bool:
    """Whether a tokenizer.json is a byte-level BPE: the only kind beside SentencePiece here."""
    steps = [one["type"] for one in _flat(content.get("pre_tokenizer"))]
    return content["model"].get("type") == "BPE" and "ByteLevel" in steps


def _flat(part: dict | None) -> Iterator[dict]:
    """The steps of a pre-tokenizer or normaliser, sequences in sequences laid out."""
    if part is None:
        return
    inner = part.get("pretokenizers") or part.get("normalizers")
    if part["type"] != "Sequence":
        yield part
        return
    for one in inner or []:
        yield from _flat(one)


def _step(file: Path, step: dict) -> Step:
    """One step in the words of `_NAMES`; what changes no id (trim_offsets) is left out."""
    kind = step["type"]
    if kind == "Digits":
        return "digits", step.get("individual_digits", False)
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return "bytes", step.get("use_regex", True)
    if kind == "Split" and _keeps_all(step):
        pattern = step["pattern"].get("Regex")
        if pattern is not None:
            return "split", unicodedata.normalize("NFC", pattern)
    raise _foreign(file, str(step)[:300])


def _keeps_all(step: dict) -> bool:
    """Matches and what lies between are both kept; the first spelling is how GPT-4's was ported."""
    how = step.get("behavior"), step.get("invert", False)
    return how in (("Removed", True), ("Isolated", False))


def _require_normalizer(file: Path, normalizer: dict | None) -> None:
    kinds = [step["type"] for step in _flat(normalizer)]
    if kinds == ["NFC"]:
        _log.info("%s: texts are put into NFC first, which llama.cpp leaves to its caller", file)
    elif kinds:
        raise _foreign(file, f"normalizer {', '.join(kinds)}")


def _require_plain_merges(file: Path, model: dict) -> None:
    """Unsupported for a BPE with dropout, marked word parts, or bytes that are tokens' names."""
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    found = [f"{key} {model[key]!r}" for key in odd if model.get(key)]
    if found:
        raise _foreign(file, f"model with {', '.join(found)}")


def _foreign(file: Path, what: str) -> Unsupported:
    known = ", ".join(sorted(set(_NAMES.values())))
    return Unsupported(
        f"{file}: prepares text by rules that SlimTune does not know",
        f"{what}; known are those that llama.cpp calls {known}, whole and in this order",
        "set LLAMA_CPP_DIR to a checkout of llama.cpp, whose converter knows more of them; a "
        "tokenizer.json that another program wrote may lack steps: take the original model's",
    )
