"""A Llama-style SentencePiece model as a fast tokenizer with SentencePiece's and llama.cpp's ids.

transformers 5 orders the merges by token id when it reads a `tokenizer.model`; SentencePiece merges
by score. In Llama-2 the runs of spaces have small ids and the lowest scores, so code, tables and
indentation get other ids than the model was trained on. Here merges follow the scores.
"""

import re
from functools import lru_cache
from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from slimtune.artifacts.files import require_fetched

SPACE = "\u2581"
_BPE = 2
_RANK, _LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n"), 1024  # tiktoken: a token in base64
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


def read_sentencepiece(model_file: Path) -> sentencepiece_model_pb2.ModelProto | None:
    """The parsed model, or None for the other kinds under this name (tiktoken, Unigram)."""
    require_fetched(model_file)
    proto = _parsed(model_file)
    if proto is None or not proto.pieces or proto.trainer_spec.model_type != _BPE:
        return None
    return proto


def is_of_another_kind(model_file: Path) -> bool:
    """Whether it is whole, and merges by other rules: Unigram, or tiktoken's lines of ranks."""
    if not model_file.is_file():
        return False
    proto = _parsed(model_file)
    if proto is not None and proto.pieces:
        return True
    with model_file.open("rb") as file:
        return _RANK.match(file.read(_LINE)) is not None


def _parsed(model_file: Path) -> sentencepiece_model_pb2.ModelProto | None:
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model_file.read_bytes())
    except DecodeError:
        return None
    return proto


def rewrites_text(proto: sentencepiece_model_pb2.ModelProto) -> bool:
    """True if the model normalises its input (NFKC, collapsed spaces); llama.cpp does not."""
    spec = proto.normalizer_spec
    return bool(spec.precompiled_charsmap) or spec.remove_extra_whitespaces


def build(proto: sentencepiece_model_pb2.ModelProto) -> Tokenizer:
    """The same pieces and ids as a `tokenizers.Tokenizer`, without BOS or EOS of its own."""
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    unknown = next(piece.piece for piece in proto.pieces if piece.type == _UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(proto.SerializeToString()),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = proto.normalizer_spec.add_dummy_prefix
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in proto.pieces
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


@lru_cache(maxsize=2)
def _merges(model: bytes) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first, as SentencePiece merges.

    Kept, for a run reads a tokenizer more than once: of 32,000 pieces this is two fifths of it.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    normal = [index for index, piece in enumerate(proto.pieces) if piece.type == _NORMAL]
    merges: list[tuple[str, str]] = []
    for index in sorted(normal, key=lambda i: (-proto.pieces[i].score, i)):
        piece = proto.pieces[index].piece
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
