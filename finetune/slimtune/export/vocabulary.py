"""The vocabulary of a GGUF: tokenizer.model (SentencePiece), or the BPE of a tokenizer.json.

The rules are those of llama.cpp's converter (conversion/base.py). llama.cpp splits text before
merging by rules compiled into it; `pretokenizers` tells which are a byte-level BPE's.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
from gguf import TokenType
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from slimtune.artifacts.files import require_fetched
from slimtune.errors import InputError
from slimtune.export.pretokenizers import is_byte_level, pre_tokenizer_name
from slimtune.models.json_files import read_model_json
from slimtune.models.tokenizer_files import read_head, special_tokens

MODEL_FILE = "tokenizer.model"
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns about Llama's ordinary template


@dataclass
class Vocabulary:
    """Bytes, score and type of each token, in order of ids, one for each row of the embedding.

    `model` is llama.cpp's name of the algorithm, `pre` of the rule that splits text before it; BPE
    has no scores.
    """

    model: str
    pre: str
    tokens: list[bytes]
    scores: list[float]
    types: list[TokenType]

    def set(self, index: int, text: str, kind: TokenType, score: float = 0.0) -> None:
        self.tokens[index], self.scores[index], self.types[index] = text.encode(), score, kind


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokens of a model folder, filled up with unused `[PADn]` to the embedding's `rows`.

    Raises InputError without tokenizer.model or a byte-level BPE, or when the tokenizer has more
    tokens than the embedding has rows.
    """
    if (folder / MODEL_FILE).is_file() or not (folder / "tokenizer.json").is_file():
        return _sentencepiece(folder, rows)
    pre, tokens = read_bpe(folder)
    vocabulary = _blank(folder, "gpt2", pre, max(tokens) + 1, rows)
    for index, (text, kind) in tokens.items():
        vocabulary.set(index, text, kind)
    return vocabulary


def write_vocabulary(
    writer: gguf.GGUFWriter, folder: Path, vocabulary: Vocabulary, template: str | None = None
) -> None:
    """Tokens, special ids, add_bos/add_eos and the chat template, into the metadata.

    `template` is for a folder that has none of its own.
    """
    prefix = read_model_json(folder / "tokenizer_config.json", optional=True).get(
        "add_prefix_space"
    )
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    merges = vocabulary.model == "gpt2"
    if not merges:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if merges:
        special = gguf.SpecialVocab(folder, load_merges=True)
    else:
        with without_vocabulary(folder) as slim:
            special = gguf.SpecialVocab(slim, n_vocab=len(vocabulary.tokens))
    special.chat_template = special.chat_template or template
    # Left unsaid, llama.cpp guesses by `pre`. EOS ends an answer, never the prompt before it.
    tokens = special_tokens(folder, vocabulary.tokens)
    special.add_special_token |= {"bos": tokens.puts_bos, "eos": False}
    if tokens.eos != tokens.named_eos:
        special.special_token_ids["eos"] = vocabulary.tokens.index(tokens.eos.encode())
    special.add_to_gguf(writer, quiet=True)


def _sentencepiece(folder: Path, rows: int) -> Vocabulary:
    processor = _processor(folder)
    added = _added_tokens(folder, processor.vocab_size())
    count = max([processor.vocab_size(), *(index + 1 for index in added)])
    vocabulary = _blank(folder, "llama", "default", count, rows)
    pieces = ModelProto.FromString(processor.serialized_model_proto()).pieces
    for index, piece in enumerate(pieces):
        # llama.cpp's converter takes user-defined pieces (Mistral v3's) for ordinary ones, and
        # splits what SentencePiece and the tokenizer in training never do.
        kind = TokenType(piece.type)  # GGUF numbers the kinds as SentencePiece does
        own = kind == TokenType.USER_DEFINED
        text = piece.piece.replace("\u2581", " ") if own else piece.piece
        vocabulary.set(index, text, kind, piece.score)
    for index, (content, special) in added.items():
        text = content if special else content.replace("\u2581", " ")
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        vocabulary.set(index, text, kind, _ADDED_SCORE)
    return vocabulary


def _blank(folder: Path, model: str, pre: str, count: int, rows: int) -> Vocabulary:
    if count > rows:
        raise InputError(
            f"{folder}: the tokenizer has {count} tokens, the embedding {rows} rows",
            "a token was added to the tokenizer (often <pad>) and not to the model, or the reverse",
            "use the tokenizer the model was trained with; SlimTune itself pads with <unk>",
        )
    names = [f"[PAD{i}]".encode() for i in range(rows)]
    return Vocabulary(model, pre, names, [_UNUSED_SCORE] * rows, [TokenType.UNUSED] * rows)


def _processor(folder: Path) -> SentencePieceProcessor:
    file = folder / MODEL_FILE
    if not file.is_file():
        raise InputError(
            f"{folder}: no {MODEL_FILE}",
            "a GGUF needs the scores of the SentencePiece model; tokenizer.json does not hold them",
            f"copy {MODEL_FILE} from the base model into this folder",
        )
    require_fetched(file)
    try:
        return SentencePieceProcessor(model_file=str(file))
    except RuntimeError as error:
        raise InputError(
            f"{file}: not a SentencePiece model",
            str(error).split("\n")[0],
            f"copy {MODEL_FILE} from the base model again",
        ) from error


def _added_tokens(folder: Path, pieces: int) -> dict[int, tuple[str, bool]]:
    """Id -> (text, special) of tokens that are not plain SentencePiece pieces.

    llama.cpp's converter reads added_tokens.json and tokenizer_config.json only; transformers 5
    keeps added tokens in tokenizer.json, so those beyond the pieces are taken from there.
    """
    added = {
        index: (text, False)
        for text, index in read_model_json(folder / "added_tokens.json", optional=True).items()
    }
    for token in read_head(folder / "tokenizer.json").get("added_tokens", []):
        if token["id"] >= pieces:
            added[token["id"]] = (token["content"], is_special(token))
    decoder = read_model_json(folder / "tokenizer_config.json", optional=True).get(
        "added_tokens_decoder", {}
    )
    for index, token in decoder.items():
        added[int(index)] = (token["content"], is_special(token))
    return added


Token = tuple[str, TokenType]


def read_bpe(folder: Path) -> tuple[str, dict[int, Token]]:
    """(llama.cpp's name of the splitting rule, id -> (text, type)).

    Raises InputError where tokenizer.json is no byte-level BPE, Unsupported where it splits text in
    a way that SlimTune does not know.
    """
    file = folder / "tokenizer.json"
    content = read_model_json(file)
    if not is_byte_level(content):
        raise InputError(
            f"{folder}: no tokenizer.model",
            "a GGUF needs the scores of the SentencePiece model; tokenizer.json does not hold them",
            "copy tokenizer.model from the base model into this folder",
        )
    pre = pre_tokenizer_name(file, content)
    tokens = {index: (text, TokenType.NORMAL) for text, index in content["model"]["vocab"].items()}
    for added in content.get("added_tokens", []):
        kind = TokenType.CONTROL if is_special(added) else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    return pre, tokens


def is_special(token: dict) -> bool:
    """Whether an added token is a control token, by its flag or its looks."""
    text = token["content"]
    control = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    bars = (text.startswith("<|") and text.endswith("|>")) or (
        text.startswith("<｜") and text.endswith("｜>")
    )
    unused = text.startswith("<unused") and text.endswith(">")
    return bool(token.get("special")) or control or bars or unused


_BESIDE = ("config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_TEMPLATES = "additional_chat_templates"


@contextmanager
def without_vocabulary(folder: Path) -> Iterator[Path]:
    """A temporary copy of a model folder's tokenizer settings, as gguf-py reads them."""
    with TemporaryDirectory() as temporary:
        slim = Path(temporary)
        for name in _BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, slim / name)
        if (folder / _TEMPLATES).is_dir():
            shutil.copytree(folder / _TEMPLATES, slim / _TEMPLATES)
        if (folder / "tokenizer.json").is_file():
            head = json.dumps(read_head(folder / "tokenizer.json"))
            (slim / "tokenizer.json").write_text(head, encoding="utf-8")
        yield slim
