"""Whether a folder's tokenizer makes llama.cpp's ids of texts that are hard to tokenize."""

from itertools import zip_longest
from pathlib import Path

from slimtune.console import InputError, near
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers

TEXTS = (
    "1. one\n\n2. two\n\n\n10. ten, 100, 1000, 12345",
    "a  1   22    333     4444",
)


def require_same_ids(model: LlamaCpp, folder: Path) -> int:
    """How many texts were compared; InputError that names the first whose ids differ."""
    tokenizer = tokenizers.load_tokenizer(folder)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    texts = [*TEXTS, *(text for token in added for text in (f"a{token}b", f"1 {token} 2"))]
    for text in texts:
        ours = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        theirs = model.tokenize(text, add_special=False)
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
