"""The vocabulary of a GGUF as the tokenizer files of a model folder.

A SentencePiece vocabulary becomes a tokenizer.model, a byte-level BPE a tokenizer.json. What such a
file does to a text before it merges is not in the GGUF: `tokenizer.ggml.pre` names rules that are
compiled into llama.cpp. `vocabulary_check` asks llama.cpp whether the two agree.
"""

from pathlib import Path
from typing import Any

from gguf import TokenType
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from slimtune.artifacts.files import write_json, write_text
from slimtune.console import near
from slimtune.errors import InputError
from slimtune.export.pretokenizers import byte_level, known_names, pre_tokenizer_of
from slimtune.inference.gguf_tokenizer import GgufTokens
from slimtune.models import tokenizers
from slimtune.models.gguf_header import GgufHeader, damaged
from slimtune.models.json_files import read_model_json

_BPE = 2  # sentencepiece's number of that algorithm


def write_tokenizer(
    header: GgufHeader, tokens: GgufTokens, first: int | None, folder: Path
) -> None:
    """The tokenizer files and the chat template; `first` is the token put before every text.

    Raises InputError for a vocabulary, or a rule to split text, that SlimTune does not know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = header.get("tokenizer.ggml.model", str, "")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.name(tokens.bos if first is None else first),
        "eos_token": tokens.name(tokens.eos),
        "unk_token": tokens.name(tokens.unknown),
        "pad_token": tokens.name(tokens.padding),
        "clean_up_tokenization_spaces": False,
    }
    config = {key: value for key, value in config.items() if value is not None}
    if header.template:
        write_text(folder / tokenizers.TEMPLATE_FILE, header.template)
    if model == "llama":
        _write_sentencepiece(header, tokens, config | {"add_bos_token": first is not None}, folder)
    elif model == "gpt2":
        write_json(folder / tokenizers.JSON_FILE, _byte_level(header, tokens, first))
        write_json(folder / tokenizers.TOKENIZER_CONFIG, config)
    else:
        raise InputError(
            f"{near(header.file)}: a vocabulary of the kind {model or '(none)'}",
            "SlimTune unpacks llama (SentencePiece) and gpt2 (byte-level BPE)",
            "begin with the original model's folder",
        )


def _write_sentencepiece(
    header: GgufHeader, tokens: GgufTokens, config: dict[str, Any], folder: Path
) -> None:
    prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    proto = _proto(header, tokens, prefix)
    (folder / tokenizers.SENTENCEPIECE_FILE).write_bytes(proto.SerializeToString())
    write_json(folder / tokenizers.TOKENIZER_CONFIG, config)
    tokenizers.save_tokenizer(tokenizers.load_tokenizer(folder), folder)
    if not prefix:  # a conversion reads it from here
        file = folder / tokenizers.TOKENIZER_CONFIG
        write_json(file, read_model_json(file) | {"add_prefix_space": False})


def _proto(header: GgufHeader, tokens: GgufTokens, prefix: bool) -> ModelProto:
    """A tokenizer.model of these pieces, scores and types, which merges as llama.cpp does."""
    scores = header.metadata.get("tokenizer.ggml.scores", ())
    if len(scores) != len(tokens.tokens):
        raise damaged(header.file, f"{len(tokens.tokens)} tokens have {len(scores)} scores")
    proto = ModelProto()
    texts = _texts(header, tokens)
    _require_distinct(header, texts)
    for text, score, kind in zip(texts, scores, tokens.types, strict=True):
        proto.pieces.add(piece=text, score=float(score), type=int(kind))
    unknown = [index for index, kind in enumerate(tokens.types) if kind == TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise damaged(header.file, f"{len(unknown)} tokens are for the unknown, one is needed")
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    spec.model_type, spec.vocab_size = _BPE, len(tokens.tokens)
    spec.byte_fallback = TokenType.BYTE in tokens.types
    spec.unk_id, spec.bos_id, spec.eos_id = unknown[0], tokens.bos, tokens.eos
    spec.unk_piece, spec.bos_piece, spec.eos_piece = map(
        tokens.name, (unknown[0], tokens.bos, tokens.eos)
    )
    spec.pad_id = -1
    normalizer.name, normalizer.add_dummy_prefix = "identity", prefix
    normalizer.remove_extra_whitespaces = False
    return proto


def _byte_level(header: GgufHeader, tokens: GgufTokens, bos: int | None) -> dict[str, Any]:
    """A tokenizer.json; `bos` is the token that it puts before every text, if any."""
    pre = header.get("tokenizer.ggml.pre", str, "")
    rule = pre_tokenizer_of(pre)
    if rule is None:
        raise InputError(
            f"{near(header.file)}: splits text by the rule {pre or '(none)'} of llama.cpp",
            f"SlimTune knows {', '.join(known_names())}",
            "begin with the original model's folder, which has its own tokenizer.json",
        )
    steps, whole_words = rule
    texts = _texts(header, tokens)
    used = {i: text for i, text in enumerate(texts) if tokens.types[i] != TokenType.UNUSED}
    _require_distinct(header, list(used.values()))
    if tokens.eos is None:
        raise damaged(header.file, "it names no EOS, so an answer would never end")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(tokens, index) for index in tokens.added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _post_processor(tokens, bos),
        "decoder": byte_level(True, add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": {text: index for index, text in used.items()},
            "merges": _merges(header, set(used.values())),
        },
    }


def _require_distinct(header: GgufHeader, texts: list[str]) -> None:
    if len(set(texts)) != len(texts):
        raise damaged(header.file, "two of its tokens have the same text")


def _texts(header: GgufHeader, tokens: GgufTokens) -> list[str]:
    try:
        return [token.decode() for token in tokens.tokens]
    except UnicodeDecodeError as error:
        raise damaged(header.file, f"a token is no UTF-8: {error.object!r}") from error


def _added(tokens: GgufTokens, index: int) -> dict[str, Any]:
    return {
        "id": index,
        "content": tokens.added[index],
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": tokens.types[index] == TokenType.CONTROL,
    }


def _post_processor(tokens: GgufTokens, bos: int | None) -> dict[str, Any]:
    if bos is None:
        return byte_level(True, add_prefix_space=True, trim_offsets=False)
    name = tokens.name(bos)
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }


def _merges(header: GgufHeader, known: set[str]) -> list[list[str]]:
    merges = header.get("tokenizer.ggml.merges", list, [])
    found = []
    for merge in merges:
        parts = merge.decode("utf-8", "replace").split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= known:
            raise damaged(header.file, f"it merges {merge[:40]!r}, which are no tokens of its own")
        found.append(parts)
    return found
