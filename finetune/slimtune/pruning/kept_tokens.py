"""Which tokens of a BPE stay: those in use, and all that they are made of.

    kept = closure(in use | added tokens | single bytes | ids that the model's files name)

A merge makes a token of two others, and every way to make it stays, so whatever is merged on the
way to a token in use still is, in the same order: a text made of kept tokens is cut as it was. Any
other text is still spelled, by shorter tokens or single bytes.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from slimtune import prompts
from slimtune.artifacts.files import text_lines
from slimtune.config import Config
from slimtune.console import near
from slimtune.data.rows import read_rows
from slimtune.errors import InputError, SettingsError
from slimtune.models import tokenizers
from slimtune.models.json_files import read_model_json
from slimtune.models.tokenizer_files import JSON_FILE, TOKENIZER_CONFIG, read_head

LANGUAGES = Path(__file__).parent / "languages"
ID_FILES = ("config.json", "generation_config.json")
# Models have tokens of their own for numbers up to three digits, line ends and indentation.
_EVERYWHERE = [str(number) for number in range(1000)]
_EVERYWHERE += [
    ". , ; : ! ? ( ) [ ] { } < > / \\ | @ # $ % ^ & * - _ = + ~ ` ' \" 。 ， 、 ； ： ！ ？"
]
_EVERYWHERE += ["\n" * lines for lines in (1, 2)] + [" " * blanks for blanks in range(1, 17)]


@dataclass(frozen=True)
class Texts:
    """What is in use: conversations as the model reads them, and plain text."""

    rows: list[list[dict[str, Any]]]
    plain: list[str]
    template: str

    @classmethod
    def of(cls, config: Config, tokenizer: PreTrainedTokenizerFast) -> "Texts":
        """All training rows, the text file and the words of the languages that the settings name.

        SettingsError where they name none.
        """
        pruning, rows = config.pruning, config.training.train_data
        found, plain = [], []
        if "training.train_data" in config.options.flags or os.path.lexists(rows):
            found = [row["messages"] for row in read_rows(rows)]
        if pruning.vocabulary_text:
            cure = "name a text file in UTF-8, or set it to null"
            plain += text_lines(pruning.vocabulary_text, "pruning.vocabulary_text", cure)
        for language in pruning.languages:
            plain += _words(language)
        if not found and not plain:
            raise SettingsError(
                "pruning.vocabulary: trim, and nothing says which tokens are in use",
                f"{near(rows)} is not there, no text is named and no language",
                "prepare the data first, or name a language: --languages en",
            )
        template = prompts.template_of(config.model.prompt_template, tokenizer)
        return cls(found, plain + _EVERYWHERE, template)

    def encoded(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
        """Ids of each row under the prompt template, then of each plain text."""
        for messages in self.rows:
            yield prompts.encode(tokenizer, messages, self.template)["input_ids"]
        for text in self.plain:
            yield tokenizer(text, add_special_tokens=False, verbose=False).input_ids


class Pieces:
    """The vocabulary of `tokenizer`; InputError for one that is no BPE over bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._content = json.loads(tokenizer.backend_tokenizer.to_str())
        self._model = self._content["model"]
        kind, name = self._model["type"], tokenizer.name_or_path
        if kind != "BPE" or any(self._model.get(key) for key in _AFFIXES):
            kind = kind if kind != "BPE" else "BPE with affixes"
            raise _untrimmable(
                name, f"its tokenizer is a {kind}, whose tokens are not merged pairs"
            )
        self.ids: dict[str, int] = self._model["vocab"]
        letters = self._letters()
        if not letters:
            raise _untrimmable(name, "it has no tokens for single bytes, so text would be lost")
        self.always = {self.ids[letter] for letter in letters}
        self.always |= {token["id"] for token in self._content["added_tokens"]}
        if self._model.get("unk_token"):
            self.always.add(self.ids[self._model["unk_token"]])

    def _letters(self) -> list[str]:
        """The tokens of single bytes; SmolLM2 lacks those that its training text did not have."""
        if self._model.get("byte_fallback"):
            letters = [f"<0x{byte:02X}>" for byte in range(256)]
            return letters if self.ids.keys() >= set(letters) else []
        decoder = self._content["decoder"] or {}
        steps = [decoder, *decoder.get("decoders", [])]
        if all(step.get("type") != "ByteLevel" for step in steps):
            return []
        return [letter for letter in ByteLevel.alphabet() if letter in self.ids]

    @cached_property
    def halves(self) -> Mapping[int, set[int]]:
        """Id -> ids of the halves of every merge that makes it."""
        found: dict[int, set[int]] = {}
        for left, right in map(pair_of, self._model["merges"]):
            made = found.setdefault(self.ids[left + right], set())
            made |= {self.ids[left], self.ids[right]}
        return found

    def closed(self, ids: Iterable[int]) -> set[int]:
        """`ids` and all that they are merged from."""
        found: set[int] = set()
        waiting = list(ids)
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += self.halves.get(one, ())
        return found


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def kept_tokens(source: Path, config: Config) -> list[int] | None:
    """Ascending ids that stay of the model's vocabulary, None where pruning.vocabulary keeps all.

    Raises SettingsError for a language or a text without `trim`, and where nothing is in use;
    InputError for a tokenizer that cannot be trimmed, or has no token too many.
    """
    pruning = config.pruning
    if pruning.vocabulary == "keep":
        if pruning.languages or pruning.vocabulary_text:
            raise SettingsError(
                "pruning.languages, pruning.vocabulary_text: nothing reads them",
                "they say which tokens stay, and pruning.vocabulary keeps all",
                "add --vocabulary trim, or leave them out",
            )
        return None
    tokenizer = tokenizers.load_tokenizer(source)
    pieces, rows = Pieces(tokenizer), read_model_json(source / "config.json")["vocab_size"]
    tokenizers.check_vocabulary(tokenizer, rows)
    used = {id for ids in Texts.of(config, tokenizer).encoded(tokenizer) for id in ids}
    named = {id for id in named_ids(source) if 0 <= id < rows}
    kept = sorted(pieces.closed(used | pieces.always | named))
    if len(kept) == rows:
        raise InputError(
            f"{near(source)}: no token can go",
            f"all {rows} are in use, single bytes or special tokens",
            "leave out --vocabulary trim",
        )
    return kept


def named_ids(folder: Path) -> set[int]:
    """The token ids in the files beside the weights: special ones and tokens added later."""
    found = {token["id"] for token in read_head(folder / JSON_FILE).get("added_tokens", [])}
    found |= set(read_model_json(folder / "added_tokens.json", optional=True).values())
    about = read_model_json(folder / TOKENIZER_CONFIG, optional=True)
    found |= {int(id) for id in about.get("added_tokens_decoder", {})}
    for name in ID_FILES:
        for key, value in read_model_json(folder / name, optional=True).items():
            if key.endswith("_token_id"):
                found.update(value if isinstance(value, list) else [value])
    return {id for id in found if id is not None}


def pair_of(merge: str | list[str]) -> tuple[str, str]:
    """A merge of tokenizer.json, which older files write as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _words(language: str) -> list[str]:
    """Each general word of a language as it begins a text and a sentence, and follows a word."""
    words = (LANGUAGES / f"{language}.txt").read_text(encoding="utf-8").split()
    forms = [form for word in words for form in dict.fromkeys((word, word.capitalize()))]
    return [*forms, *(f" {form}" for form in forms)]


def _untrimmable(name: str, why: str) -> InputError:
    return InputError(
        f"{near(name)}: its vocabulary cannot be trimmed",
        why,
        "leave out --vocabulary trim; byte-level BPE and SentencePiece BPE can be trimmed",
    )
