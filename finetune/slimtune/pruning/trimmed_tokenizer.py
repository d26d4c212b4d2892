"""The tokenizer files of a model whose vocabulary was trimmed, every id in them numbered anew."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slimtune.artifacts.files import write_json
from slimtune.models.json_files import read_model_json
from slimtune.models.sentencepiece_bpe import read_sentencepiece
from slimtune.models.tokenizer_files import JSON_FILE, SENTENCEPIECE_FILE, TOKENIZER_CONFIG
from slimtune.pruning.kept_tokens import ID_FILES, pair_of

_OLDER = ("vocab.json", "merges.txt")  # say again, for slow tokenizers, what tokenizer.json says
_PIECE_IDS = ("unk_id", "bos_id", "eos_id", "pad_id")

Number = Mapping[int, int]  # old id -> new id of each token that stays


def renumber(folder: Path, kept: list[int]) -> None:
    """Rewrites the files of `folder` for the tokens `kept`: the one at place i of it gets id i."""
    number = {old: new for new, old in enumerate(kept)}
    for name, change in _CHANGES.items():
        if (folder / name).is_file():
            write_json(folder / name, change(read_model_json(folder / name), number))
    _pieces(folder / SENTENCEPIECE_FILE, number)
    for name in _OLDER:
        (folder / name).unlink(missing_ok=True)


def _tokenizer(content: dict[str, Any], number: Number) -> dict[str, Any]:
    model = content["model"]
    vocabulary = {text: number[id] for text, id in model["vocab"].items() if id in number}
    merges = [merge for merge in model["merges"] if _made_of(merge, vocabulary)]
    added = [token | {"id": number[token["id"]]} for token in content.get("added_tokens", [])]
    changed = {"vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1]))}
    content["added_tokens"] = sorted(added, key=lambda token: token["id"])
    content["model"] = model | changed | {"merges": merges}
    _processor(content.get("post_processor") or {}, number)
    return content


def _made_of(merge: str | list[str], vocabulary: Mapping[str, int]) -> bool:
    left, right = pair_of(merge)
    return {left, right, left + right} <= vocabulary.keys()


def _processor(processor: dict[str, Any], number: Number) -> None:
    """The ids that a post-processor puts around a text, in place."""
    for one in processor.get("processors", []):
        _processor(one, number)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [number[id] for id in token["ids"]]
    for side in ("sep", "cls"):
        if side in processor:
            text, id = processor[side]
            processor[side] = [text, number[id]]


def _decoder(content: dict[str, Any], number: Number) -> dict[str, Any]:
    listed = content.get("added_tokens_decoder")
    if listed is None:
        return content
    found = {str(number[int(id)]): token for id, token in listed.items()}
    return content | {"added_tokens_decoder": found}


def _added(content: dict[str, Any], number: Number) -> dict[str, Any]:
    return {text: number[id] for text, id in content.items()}


def _named(content: dict[str, Any], number: Number) -> dict[str, Any]:
    """Ids of a config; one that names no token (-1) becomes null."""
    for key, value in content.items():
        if key.endswith("_token_id") and value is not None:
            many = isinstance(value, list)
            content[key] = (
                [number[id] for id in value if id in number] if many else number.get(value)
            )
    return content


Change = Callable[[dict[str, Any], Number], dict[str, Any]]
_CHANGES: dict[str, Change] = {
    JSON_FILE: _tokenizer,
    TOKENIZER_CONFIG: _decoder,
    "added_tokens.json": _added,
} | dict.fromkeys(ID_FILES, _named)


def _pieces(file: Path, number: Number) -> None:
    """Cuts a SentencePiece model; another file of that name goes, for tokenizer.json decides."""
    proto = read_sentencepiece(file) if file.is_file() else None
    if proto is None:
        file.unlink(missing_ok=True)
        return
    pieces = [piece for id, piece in enumerate(proto.pieces) if id in number]
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    spec = proto.trainer_spec
    spec.vocab_size = len(pieces)
    for name in _PIECE_IDS:
        setattr(spec, name, number.get(getattr(spec, name), -1))
    file.write_bytes(proto.SerializeToString())
