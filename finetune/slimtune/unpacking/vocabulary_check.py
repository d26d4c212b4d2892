"""Whether a folder's tokenizer makes llama.cpp's ids of texts that are hard to tokenize."""

from itertools import zip_longest
from pathlib import Path

from slimtune.console import InputError, near
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models import tokenizers

# What rules differ in: digits one by one or in threes, blank lines and spaces before them, what is
# a number, a letter or a mark, contractions, line ends. In NFC: llama.cpp normalises nothing. No
# names of other families' special tokens: llama.cpp takes some for its own wherever they stand in a
# vocabulary (Qwen2's has </s> among its plain tokens).
TEXTS = (
    "1. one\n\n2. two\n\n\n10. ten, 100, 1000, 12345 and 1234567",
    "a  1   22    333     4444\t5",
    "  two spaces, \t a tab\t\tand some at the end   ",
    " \n\n \n",
    "one\r\ntwo\r\n\r\n three",
    "½ ¾ x² y³ Ⅷ ①② ٣٤٥ ۱۲۳ १२३",
    "3.14, 1,000,000, 0x1F, 1e-10, 2024-12-31, +49 30 1234",
    "It's I'll you've WE'RE they'd don't 'so' o'clock ’tis",
    "🙂 👍🏽 👨\u200d👩\u200d👧 🇩🇪",
    "你好，世界！2024年12月31日。“引号”《书名》……——",
    "日本語のテキスト、カタカナ。한국어 텍스트",
    "Ünïcödé naïve Straße Ελληνικά русский ЁЛКА שלום مرحبا สวัสดี नमस्ते",
    "def f(x):\n    return 3.14 * x ** 2\n\n\tif a != 0 && b[1] -> {}; </tag>",
    "https://example.org/a-b_c?d=1&e=%20#f C:\\temp\\new.txt user@example.org",
    '!!!???...,,, --- === ### (([[{{ }}]])) ``` $$ "x"',
    "CamelCaseWORD snake_case 4th a1b2c3 iPhone",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f",
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
