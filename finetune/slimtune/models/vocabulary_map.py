"""Which ids the tokens of a trimmed vocabulary had before: vocabulary_map.json beside the model.

    new id i  ->  old id kept[i]

It travels with the tokenizer, into every model that is made of the trimmed one, and leads to the
first vocabulary, however often it was trimmed. It is only what somebody wrote: who maps ids by it
compares the tokens at both ends.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slimtune.artifacts.files import write_json
from slimtune.errors import InputError
from slimtune.models.json_files import read_model_json

MAP_FILE = "vocabulary_map.json"


@dataclass(frozen=True)
class VocabularyMap:
    """Ascending old ids of the tokens left, of how many there were, and the fingerprint of the
    model that was trimmed."""

    tokens_before: int
    kept: list[int]
    trimmed_from: str | None = None


def read_map(folder: Path) -> VocabularyMap | None:
    """The map of a model folder, None where its vocabulary was never trimmed.

    InputError for a file that is no such map.
    """
    file = folder / MAP_FILE
    if not file.is_file():
        return None
    content = read_model_json(file)
    before, kept = content.get("tokens_before"), content.get("kept")
    if before is None or not kept or kept[-1] >= before:
        raise InputError(
            f"{file}: not the map of a trimmed vocabulary",
            "it lacks tokens_before or kept, or keeps a token beyond those that there were",
            "run model_pruning.py --vocabulary trim again, or copy the folder again",
        )
    return VocabularyMap(before, kept, content.get("trimmed_from"))


def write_map(folder: Path, kept: Sequence[int], tokens_before: int, trimmed_from: str | None):
    """Records a trim of the model that lay in `folder`, on top of one that is recorded there."""
    found = VocabularyMap(tokens_before, list(kept), trimmed_from)
    earlier = read_map(folder)
    if earlier:
        first = [earlier.kept[id] for id in kept]
        found = VocabularyMap(earlier.tokens_before, first, trimmed_from)
    write_json(folder / MAP_FILE, asdict(found))


def ids_digest(ids: Sequence[int]) -> str:
    """SHA-256 of ids in their order, 16 digits."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]
