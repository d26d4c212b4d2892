"""The vocabulary of a GGUF in llama.cpp, in this process: text to ids and back, without weights.

Use `llama_cpp`, which keeps this in a child process: llama.cpp aborts the process on some files.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

from slimtune.errors import InputError
from slimtune.inference.llama_library import LOG_CALLBACK, library, vocabulary_only

_ERROR_LEVEL = 4


class LlamaVocabulary:
    """A loaded file; `whole` says whether its weights are loaded as well.

    Without them no memory is taken for them (llama.cpp repacks many types into memory of its own).
    """

    context = 0  # tokens that it can read: it is no model

    def __init__(self, gguf: Path, whole: bool = False) -> None:
        self.gguf = gguf
        self.lib = library()
        self.errors: list[str] = []
        self._callback = LOG_CALLBACK(self._remember)  # ctypes does not keep it alive
        self.lib.llama_log_set(self._callback, None)
        self.lib.llama_backend_init()
        self.model = self._load(whole)
        self.vocabulary = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocabulary)

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """`add_special`: BOS first where the file says so; `parse_special`: `</s>` is EOS."""
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self.lib.llama_tokenize(
                self.vocabulary, data, len(data), ids, room, add_special, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            room = -count  # a space alone is three bytes where the vocabulary lacks one

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(1024)
        size = self.lib.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(size, 0)]

    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        is_end = self.lib.llama_vocab_is_eog
        return [token for token in range(self.size) if is_end(self.vocabulary, token)]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text up to each token, with U+FFFD where bytes are no character, or not yet."""
        pieces = [self.piece(token) for token in ids]
        ends = range(1, len(pieces) + 1)
        return [b"".join(pieces[:end]).decode("utf-8", "replace") for end in ends]

    def _load(self, whole: bool) -> int:
        parameters = self.lib.llama_model_default_params()
        if not whole:
            vocabulary_only(parameters)
        model = self.lib.llama_model_load_from_file(str(self.gguf).encode(), parameters)
        if not model:
            raise InputError(
                f"{self.gguf}: llama.cpp cannot load this file",
                self._last_error("it gives no reason"),
                "convert the model again with convert_to_gguf.py",
            )
        return model

    def _remember(self, level: int, text: bytes, _: int | None) -> None:
        if level == _ERROR_LEVEL:
            self.errors.append(text.decode("utf-8", "replace").strip())

    def _last_error(self, otherwise: str) -> str:
        return self.errors[0].replace("\n", " ") if self.errors else otherwise
