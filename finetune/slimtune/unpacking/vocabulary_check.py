"""Whether a folder's tokenizer makes llama.cpp's ids of texts that are hard to tokenize."""

from itertools import zip_longest
from pathlib import Path

from slimtune.console import near
from slimtune.errors import InputError
from slimtune.export.proof.hard_texts import hard_texts
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers


def require_same_ids(model: LlamaCpp, folder: Path) -> int:
    """How many texts were compared; InputError that names the first whose ids differ."""
    texts = hard_texts(tokenizers.load_tokenizer(folder))
    for text, ours in texts:
        theirs = model.tokenize(text)
        if ours != theirs:
            raise _differ(model.gguf, text, ours, theirs)
    return len(texts)


def _differ(file: Path, text: str, ours: list[int], theirs: list[int]) -> InputError:
    pairs = enumerate(zip_longest(ours, theirs))
    place = next(number for number, (one, other) in pairs if one != other)
    return InputError(
        f"{near(file)}: its vocabulary cannot be unpacked",
        f"of {text[:60]!r} llama.cpp makes other ids from token {place} on "
        f"({theirs[place : place + 4]} and {ours[place : place + 4]}): it splits text otherwise",
        "begin with the original model's folder, which has its own tokenizer files",
    )
