"""Which weights an adapter was trained on: a fingerprint of its base, kept with the adapter.

The same shapes do not make the same base, and a name is only a name. Training writes the base's
fingerprint into run.json and the adapter's card; wherever an adapter meets a base the two are
compared. Other programs keep none: there names, revision and vocabulary are compared, and it is
said that nobody knows.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimtune.artifacts import run_of
from slimtune.console import near, quoted
from slimtune.errors import InputError
from slimtune.models.headers import read_float32
from slimtune.models.json_files import read_model_json
from slimtune.models.vocabulary_map import VocabularyMap, read_map

if TYPE_CHECKING:
    from slimtune.models.adapters import Adapter
    from slimtune.models.weights import Checkpoint

_log = logging.getLogger(__name__)

FINGERPRINT = "base_fingerprint"  # in the metrics of run.json and at the head of the card
MODEL_FINGERPRINT = "model_fingerprint"  # in the record of a GGUF: of the model it was made from
_CARD_LINE = re.compile(rf"^{FINGERPRINT}: ([0-9a-f]{{16}})$", re.MULTILINE)
_FLOATS = ("F32", "F16", "BF16")
_HEAD = 4096  # characters of a card in which the line stands
_OUTPUT = "lm_head.weight"


def fingerprint(base: "Checkpoint", *, as_read: bool = False) -> str | None:
    """SHA-256 of the first, middle and last row of every weight, 16 digits; None where quantised.

    Values count as bfloat16, so that a copy in float32 is the same model; shards and an output
    layer stored beside the embedding it is tied to do not count. Any training changes it. Of a
    merge it is the base's, and with `as_read` that of the merged weights.
    """
    infos = {n: base.tensors[n] for n in sorted(base.tensors) if not (base.tied and n == _OUTPUT)}
    if any(info.kind not in _FLOATS for info in infos.values()):
        return None
    digest = hashlib.sha256()
    for name, info in infos.items():
        digest.update(f"{name} {info.shape}".encode())
        for row in sorted({0, info.shape[0] // 2, info.shape[0] - 1}) if info.shape else ():
            told = (row, row + 1)
            rows = base.read_float32(name, *told) if as_read else read_float32(info, *told)
            digest.update(_as_bfloat16(rows))
    return digest.hexdigest()[:16]


def _as_bfloat16(row: np.ndarray) -> bytes:
    """A row rounded to the nearest bfloat16, to even where two are as near."""
    bits = np.ascontiguousarray(row).view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def recorded(adapter: Path) -> str | None:
    """The fingerprint of the base that an adapter, a folder or a GGUF file, says it was trained on;
    None for one that does not say.
    """
    run = run_of(adapter)
    if run and isinstance(run["metrics"].get(FINGERPRINT), str):
        return run["metrics"][FINGERPRINT]
    card = adapter / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        found = _CARD_LINE.search(file.read(_HEAD))
    return found[1] if found else None


def require_origin(adapter: Path, trained_on: str, base: "Checkpoint") -> None:
    """InputError for a base with other weights than those the adapter was trained on, if known.

    Where it is not: for one whose vocabulary gives the adapter's tokens other ids.
    """
    then = recorded(adapter)
    now = fingerprint(base) if then else None
    cure = f"give the model it was trained on as --base-model: {trained_on}"
    if then and now and then != now:
        raise InputError(
            f"{adapter}: this adapter is for another base than {base.folder}",
            f"the shapes are the same, the weights are not: fingerprint {then} then, {now} now",
            cure,
        )
    token = None if then and now else _token_elsewhere(adapter, base.folder)
    if token:
        raise InputError(
            f"{adapter}: this adapter is for another base than {base.folder}",
            f"the token {token!r} has another id in its tokenizer.json than in the base's",
            cure,
        )


def require_after_trim(adapter: "Adapter", base: "Checkpoint") -> None:
    """InputError for an adapter that was trained before the vocabulary of `base` was trimmed.

    The fingerprint that it keeps is that of the model that was trimmed, or its tokenizer or its
    embedding has the tokens that there were then.
    """
    known = read_map(base.folder)
    if known is None:
        return
    then = recorded(adapter.folder)
    before = then == known.trimmed_from if then else _has_tokens_of(adapter.folder, base, known)
    if not before and (adapter.vocabulary or 0) < known.tokens_before:
        return
    merge = f"--base-model {quoted(adapter.base)} --lora-model {quoted(near(adapter.folder))}"
    raise InputError(
        f"{near(adapter.folder)}: trained before the vocabulary of {near(base.folder)} was trimmed",
        f"the {len(known.kept)} tokens that are left of {known.tokens_before} have other ids now",
        f"merge it into its own base, python finetune/evaluate_model.py {merge} --merge, and trim "
        "the merged model",
    )


def _has_tokens_of(adapter: Path, base: "Checkpoint", known: VocabularyMap) -> bool:
    """Whether an adapter's tokenizer.json gives the tokens left the ids that they had before."""
    files = [folder / "tokenizer.json" for folder in (adapter, base.folder)]
    if not all(file.is_file() for file in files):
        return False
    own, given = map(_ids, files)
    places = ((token, id) for token, id in given.items() if id < len(known.kept))
    return own != given and all(own.get(token) == known.kept[id] for token, id in places)


def say_if_unknown(adapter: Path, base: Path, config: dict[str, Any]) -> None:
    """A caution where no fingerprint shows that an adapter was trained on this base."""
    if recorded(adapter):
        return
    named = config.get("base_model_name_or_path")
    name, here = _name(str(named or "")), _name(str(base))
    told = f"it names {named}" if named else "it names no base"
    if named:
        told += ", as this one is called" if name == here else f", and this one is called {here}"
    if revision := config.get("revision"):
        same = _snapshot(base) == revision
        told += f"; its revision {revision} is {'the' if same else 'not shown to be the'} base's"
    _log.warning(
        "caution: %s: not known whether it was trained on %s: it keeps no fingerprint of its base; "
        "%s",
        near(adapter),
        near(base),
        told,
    )


def _token_elsewhere(adapter: Path, base: Path) -> str | None:
    """A token that has one id in the adapter's tokenizer.json and another in the base's."""
    files = [folder / "tokenizer.json" for folder in (adapter, base)]
    if not all(file.is_file() for file in files):
        return None
    if files[0].read_bytes() == files[1].read_bytes():
        return None
    own, given = map(_ids, files)
    return next((token for token, index in own.items() if given.get(token, index) != index), None)


def _ids(file: Path) -> dict[str, int]:
    content = read_model_json(file)
    listed = content.get("model", {}).get("vocab", {})
    if isinstance(listed, list):  # unigram: (token, score) in the order of their ids
        listed = {one[0]: index for index, one in enumerate(listed)}
    return listed | {one["content"]: one["id"] for one in content.get("added_tokens") or []}


def _name(reference: str) -> str:
    """The model's own name of a path or Hub id: of a Hub snapshot that of its repository."""
    path = Path(reference)
    if _snapshot(path):
        return path.parts[-3].split("--")[-1].lower()
    return path.name.lower()


def _snapshot(path: Path) -> str | None:
    return path.name if path.parent.name == "snapshots" and len(path.parts) > 2 else None
