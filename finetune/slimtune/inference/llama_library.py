"""llama.cpp's C functions, from the prebuilt wheel xllamacpp through ctypes: no compiler needed.

The wheel's one shared object exports llama (tokenise, decode, logits) and ggml (encoders, used by
export) on Linux and macOS; the Windows wheel exports neither. ctypes releases the GIL.
Header: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

from slimtune.errors import ResourceError
from slimtune.packages import pip_line

_POINTER, _INT, _LONG, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p


class Parameters(ctypes.Structure):
    """llama_model_params or llama_context_params, passed through by value.

    Only the first four fields of the latter (n_ctx, n_batch, n_ubatch, n_seq_max) are ever written,
    so the rest is opaque and generously sized: the callee copies as much as its own version of the
    structure holds.
    """

    _fields_ = [("head", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint8 * 1008)]


class Batch(ctypes.Structure):
    """llama_batch: tokens with their positions, sequences, and whether logits are wanted."""

    _fields_ = [
        ("n_tokens", _INT),
        ("token", ctypes.POINTER(_INT)),
        ("embd", _POINTER),
        ("pos", ctypes.POINTER(_INT)),
        ("n_seq_id", ctypes.POINTER(_INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, _TEXT, _POINTER)

# name: (result, arguments)
_SIGNATURES = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG_CALLBACK, _POINTER]),
    "llama_model_default_params": (Parameters, []),
    "llama_context_default_params": (Parameters, []),
    "llama_model_load_from_file": (_POINTER, [_TEXT, Parameters]),
    "llama_init_from_model": (_POINTER, [_POINTER, Parameters]),
    "llama_adapter_lora_init": (_POINTER, [_POINTER, _TEXT]),
    "llama_set_adapters_lora": (
        _INT,
        [_POINTER, ctypes.POINTER(_POINTER), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
    ),
    "llama_set_n_threads": (None, [_POINTER, _INT, _INT]),
    "llama_n_ctx_seq": (ctypes.c_uint32, [_POINTER]),
    "llama_n_batch": (ctypes.c_uint32, [_POINTER]),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_model_n_ctx_train": (_INT, [_POINTER]),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
    "llama_vocab_is_eog": (ctypes.c_bool, [_POINTER, _INT]),
    "llama_tokenize": (
        _INT,
        [_POINTER, _TEXT, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_token_to_piece": (_INT, [_POINTER, _INT, _POINTER, _INT, _INT, ctypes.c_bool]),
    "llama_batch_init": (Batch, [_INT, _INT, _INT]),
    "llama_decode": (_INT, [_POINTER, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [_POINTER, _INT]),
    "llama_get_memory": (_POINTER, [_POINTER]),
    "llama_memory_seq_rm": (ctypes.c_bool, [_POINTER, _INT, _INT, _INT]),
}
# n_ctx, n_batch, n_ubatch, n_seq_max as the library fills them in: proof that these four still come
# first.
_CONTEXT_DEFAULTS = (512, 2048, 512, 1)
# llama_model_params as the library fills it in: n_gpu_layers and split_mode at 16, and at 72
# vocab_only, check_tensors, use_extra_bufts, no_host, no_alloc.
_MODEL_DEFAULTS = {16: b"\xff\xff\xff\xff\x01\0\0\0", 72: b"\0\0\1\0\0"}
_VOCABULARY_ONLY = 72


@cache
def library() -> ctypes.CDLL:
    """The loaded shared object with typed functions.

    Raises ResourceError where the wheel is not installed, exports nothing (Windows), or is of
    another generation.
    """
    loaded = ctypes.CDLL(str(shared_object()))
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise _unusable(f"its library does not export {name}") from error
    if tuple(loaded.llama_context_default_params().head) != _CONTEXT_DEFAULTS:
        raise _unusable("its parameter structure differs from the tested version's")
    return loaded


def vocabulary_only(parameters: Parameters) -> None:
    """Has llama_model_load_from_file leave out the weights.

    In a structure of another version than the tested one nothing is changed: the whole file is
    loaded then, which costs time and memory only.
    """
    filled = bytes(parameters)
    if all(filled[at : at + len(known)] == known for at, known in _MODEL_DEFAULTS.items()):
        ctypes.memset(ctypes.addressof(parameters) + _VOCABULARY_ONLY, 1, 1)


def shared_object() -> Path:
    """The file of the wheel that holds llama.cpp; ResourceError where it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise ResourceError(
            "xllamacpp is not installed",
            "K-quants and running a GGUF need llama.cpp's code, which this wheel brings",
            pip_line("xllamacpp"),
        )
    folder = Path(spec.submodule_search_locations[0])
    found = [*folder.glob("xllamacpp*.so"), *folder.glob("xllamacpp*.pyd")]
    if not found:
        raise _unusable(f"no shared object in {folder}")
    return found[0]


def _unusable(why: str) -> ResourceError:
    return ResourceError(
        "xllamacpp is installed but cannot be used",
        why,
        "install the version that requirements.txt pins, on Linux or macOS (on Windows: in WSL)",
    )
