"""Load and save tokenizers so that training, evaluation and llama.cpp see the same ids.

A folder with `tokenizer.model` gets merges ordered by score; `tokenizer.model`, which GGUF
conversion needs, is copied along; files that contradict each other are refused. Special tokens must
be ones that a fine-tune can live with: a collator that masks padding, with padding = EOS, teaches
the model never to stop; so does an EOS that the model's own chat template does not write.
"""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.artifacts.files import write_json
from slimtune.console import near
from slimtune.errors import InputError
from slimtune.models import sentencepiece_bpe
from slimtune.models.folders import is_hub_id, require_well_formed
from slimtune.models.json_files import read_model_json
from slimtune.models.tokenizer_files import (
    JSON_FILE,
    SENTENCEPIECE_FILE,
    TOKENIZER_CONFIG,
    own_template,
    sentencepiece_puts_bos,
    text_of,
)
from slimtune.models.vocabulary_map import MAP_FILE

TEMPLATE_FILE = "chat_template.jinja"
_ADDED_FILE = "added_tokens.json"
_COMPANIONS = [SENTENCEPIECE_FILE, JSON_FILE, TOKENIZER_CONFIG, TEMPLATE_FILE, _ADDED_FILE]
_UNBOUNDED = int(1e30)  # transformers' own "no limit"

_log = logging.getLogger(__name__)
_FILLING = re.compile(r"\[PAD\d+\]")  # llama.cpp's converter's name for an id without a token
_told: set[Path] = set()  # damaged files: a run reads a tokenizer more than once


def load_tokenizer(folder_or_id: str | Path) -> PreTrainedTokenizerFast:
    """The guarded tokenizer of a model folder or Hub id.

    `tokenizer.model` decides where it is a SentencePiece BPE; otherwise `tokenizer.json` is taken
    as it is. Raises InputError (no tokenizer, files that contradict each other, gated or unknown
    id) or ResourceError (offline).
    """
    folder = _folder(str(folder_or_id))
    require_well_formed(folder)
    model_file = folder / SENTENCEPIECE_FILE
    proto = sentencepiece_bpe.read_sentencepiece(model_file) if model_file.is_file() else None
    if proto is not None:
        return from_sentencepiece(model_file)
    if not (folder / JSON_FILE).is_file():
        raise InputError(
            f"{folder}: no usable tokenizer",
            f"neither {JSON_FILE} nor a SentencePiece BPE {SENTENCEPIECE_FILE} is there",
            f"copy {SENTENCEPIECE_FILE} or {JSON_FILE} from the original model into the folder",
        )
    if os.path.lexists(model_file):
        _say_who_decides(model_file)
    read_model_json(folder / JSON_FILE)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise _broken(folder / JSON_FILE, error) from error
    return guard(tokenizer)


def _say_who_decides(model_file: Path) -> None:
    """tokenizer.json, and a caution, once a run, where that hides a damage.

    What transformers wrote there merges by other rules, and a GGUF needs the pieces' scores.
    """
    if sentencepiece_bpe.is_of_another_kind(model_file):
        _log.info("%s is no SentencePiece BPE: %s decides", model_file, JSON_FILE)
    elif model_file not in _told:
        _told.add(model_file)
        _log.warning(
            "caution: %s is damaged: %s decides, which may cut text otherwise, and no GGUF can be "
            "made; copy it again from the original model",
            near(model_file),
            JSON_FILE,
        )


def from_sentencepiece(model_file: Path) -> PreTrainedTokenizerFast:
    """A fast tokenizer with SentencePiece's own ids.

    Token names, chat template and tokens added later come from the files beside `model_file`.
    """
    proto = sentencepiece_bpe.read_sentencepiece(model_file)
    if proto is None:
        raise InputError(
            f"{model_file}: not a SentencePiece BPE model",
            "Unigram and tiktoken vocabularies merge by other rules",
            f"give a Llama-style {SENTENCEPIECE_FILE}, or a folder with {JSON_FILE}",
        )
    if sentencepiece_bpe.rewrites_text(proto):
        raise InputError(
            f"{model_file}: the model rewrites its input text (NFKC or collapsed spaces)",
            "llama.cpp does not, so the same prompt would get other ids after export",
            "train it with normalization_rule_name=identity and remove_extra_whitespaces=false",
        )
    folder = model_file.parent
    config = read_model_json(folder / TOKENIZER_CONFIG, optional=True)
    listed = _added_to_same_pieces(folder, proto)
    backend = sentencepiece_bpe.build(proto)
    _add_tokens(backend, folder, config, listed)
    spec = proto.trainer_spec
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        vocab_file=str(model_file),
        bos_token=text_of(config.get("bos_token")) or spec.bos_piece,
        eos_token=text_of(config.get("eos_token")) or spec.eos_piece,
        unk_token=text_of(config.get("unk_token")) or spec.unk_piece,
        pad_token=text_of(config.get("pad_token")),
        add_bos_token=sentencepiece_puts_bos(config),
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        model_max_length=config.get("model_max_length") or _UNBOUNDED,
        chat_template=own_template(folder),
        name_or_path=str(folder),
    )
    return guard(tokenizer)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, folder: Path, source: str | Path | None = None
) -> None:
    """Write tokenizer.json, its config, chat_template.jinja, the tokenizer.model it came from, and
    the map of a trimmed vocabulary.

    `source` is the folder to take the last two from where the tokenizer does not know its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    own = tokenizer.init_kwargs.get("vocab_file")
    _settle_config(folder / TOKENIZER_CONFIG, tokenizer.add_bos_token if own else None)
    model_file = Path(own) if own else Path(source or folder) / SENTENCEPIECE_FILE
    for file in (model_file, model_file.with_name(MAP_FILE)):
        target = folder / file.name
        if file.is_file() and file.resolve() != target.resolve():
            shutil.copyfile(file, target)


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, embedding_rows: int) -> None:
    """InputError if a token id has no row in the embedding (spare rows are harmless)."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= embedding_rows:
        raise InputError(
            f"{tokenizer.name_or_path or 'tokenizer'}: {highest + 1} ids, {embedding_rows} rows",
            "the last ids have no row: a token was added, or these are another model's files",
            "use the tokenizer files that came with the weights",
        )


def _folder(folder_or_id: str) -> Path:
    """The local folder itself, or a download of just the tokenizer files of a Hub id."""
    folder = Path(folder_or_id).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(folder_or_id):
        raise InputError(
            f"{folder_or_id}: no such model folder",
            f"looked for {folder.absolute()}",
            "check the path, or run the script that writes this folder first",
        )
    from slimtune.models.hub import download  # the Hub's client is 7 MB, and rarely asked

    return download(folder_or_id, _COMPANIONS)


def _added_to_same_pieces(folder: Path, proto: ModelProto) -> list[dict]:
    """The `added_tokens` of the `tokenizer.json` beside the model.

    InputError where it numbers the model's pieces otherwise: extended vocabularies often come with
    the tokenizer.model of the model they grew from.
    """
    content = read_model_json(folder / JSON_FILE, optional=True)
    tokens = content.get("added_tokens", [])
    listed = content.get("model", {}).get("vocab")
    if not isinstance(listed, dict):
        return tokens
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    added = {token["content"]: token["id"] for token in tokens}
    listed = listed | {name: index for name, index in added.items() if name in pieces}
    if listed == pieces:
        return tokens
    odd = next(name for name in {**pieces, **listed} if pieces.get(name) != listed.get(name))
    raise InputError(
        f"{folder}: {SENTENCEPIECE_FILE} and {JSON_FILE} are of two vocabularies",
        f"{len(pieces)} and {len(listed)} pieces; {odd!r} is {pieces.get(odd)} in the first and "
        f"{listed.get(odd)} in the second",
        "remove the file that did not come with these weights",
    )


def _add_tokens(backend: Tokenizer, folder: Path, config: dict, listed: list[dict]) -> None:
    """Tokens added after the SentencePiece pieces keep their ids, or the folder is refused."""
    added: dict[int, dict] = {
        index: {"content": name}
        for name, index in read_model_json(folder / _ADDED_FILE, optional=True).items()
    }
    added |= {token["id"]: token for token in listed}
    added |= {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    for index in sorted(index for index in added if index >= backend.get_vocab_size()):
        name, special = added[index]["content"], added[index].get("special", True)
        blanks = {side: added[index].get(side, False) for side in ("lstrip", "rstrip")}
        backend.add_tokens([AddedToken(name, normalized=False, special=special, **blanks)])
        if backend.token_to_id(name) != index:
            raise InputError(
                f"{folder}: added token {name!r} should have id {index}",
                f"after the pieces of {SENTENCEPIECE_FILE} it gets {backend.token_to_id(name)}",
                f"use the {SENTENCEPIECE_FILE} that belongs to this {TOKENIZER_CONFIG}",
            )


def _settle_config(config_file: Path, add_bos: bool | None) -> None:
    """Name the class that takes tokenizer.json as it is, and say aloud who writes BOS.

    transformers drops `add_bos_token`, which GGUF conversion reads. Where tokenizer.json has its
    own post-processor (`add_bos` None: Llama-3, Qwen) the key would overrule it: it stays away.
    """
    config = read_model_json(config_file, optional=True) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    if add_bos is not None:
        config |= {"add_bos_token": add_bos, "add_eos_token": False}
    write_json(config_file, dict(sorted(config.items())))


def _broken(file: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{file}: cannot be read", reason, "copy it again from the original model")


_PAD_CANDIDATES = [
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<|fim_pad|>",
    "<|endoftext|>",
]


def guard(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One chat template, the EOS that it writes, and a pad token that is not EOS."""
    named = tokenizer.chat_template
    if isinstance(named, dict):  # several, by their use
        tokenizer.chat_template = named.get("default", next(iter(named.values()), None))
    special = [one.content for one in tokenizer.added_tokens_decoder.values() if one.special]
    end = prompts.end_of_answer(tokenizer.chat_template, tokenizer.eos_token, special)
    if end is not None:
        _log.info(
            "EOS: %s, which ends an answer in the chat template (was %s)", end, tokenizer.eos_token
        )
        tokenizer.eos_token = end
    return _guard_padding(tokenizer)


def _guard_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Keep a pad token that is not EOS, else take <unk> or a spare special one; add nothing."""
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    vocabulary = tokenizer.get_vocab()
    if pad is not None and pad != eos and pad in vocabulary:
        return tokenizer
    spare = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [tokenizer.unk_token, *_PAD_CANDIDATES, *spare, tokenizer.bos_token]
    usable = [name for name in candidates if name in vocabulary and name not in (eos, None)]
    if not usable:
        raise InputError(
            f"{tokenizer.name_or_path}: no token can serve as padding",
            "EOS is the only special token, and padding with EOS teaches a model never to stop",
            'name a "pad_token" other than EOS in tokenizer_config.json',
        )
    tokenizer.pad_token = usable[0]
    _log.debug("pad token: %s (was %s)", usable[0], pad)  # no row is padded: it changes nothing
    return tokenizer


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of all tokens; those that only fill up a GGUF's matrix do not count."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    while tokens and _FILLING.fullmatch(str(tokens[-1])):
        tokens.pop()
    return hashlib.sha256(repr(tokens).encode("utf-8", "backslashreplace")).hexdigest()
