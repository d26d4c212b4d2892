"""The layers of a stopped run that have learned: what --resume need not teach again.

    checkpoint-N: the bytes of layer N's matrices, its other values, its errors

Each is whole under its name or not at all, and beside them lie the conditions of the run, as
`training.checkpoints` has both. A layer takes what it takes in the file, not its float32 weights.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtune.artifacts.files import are_sealed, broken, json_or_none
from slimtune.console import near
from slimtune.training import checkpoints

_log = logging.getLogger(__name__)

_BYTES, _VALUES = "bytes-", "values-"


@dataclass(frozen=True)
class Learned:
    """A layer that has learned: (rows, bytes) by GGUF name, float32 values by Hugging Face name.

    `errors`: before and after (`layer_lessons.shares`); `changed`: how many bytes are others.
    """

    encoded: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    errors: tuple[float, float]
    changed: int


class Progress:
    """The layers in `folder`; with `resume` those of the run that was stopped there are kept.

    Raises SettingsError where that run had other settings, rows or model.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, str], *, resume: bool) -> None:
        self.folder = folder
        if not (resume and self.require_same(folder, conditions)):
            checkpoints.begin(folder, conditions)

    @staticmethod
    def require_same(folder: Path, conditions: Mapping[str, str]) -> bool:
        """Whether a run was stopped here with layers that have learned, under these conditions."""
        if not checkpoints.found(folder):
            return False
        checkpoints.require_same(folder, conditions)
        return True

    def save(self, index: int, learned: Learned) -> Learned:
        """Keeps a layer; the same again, its bytes left on the disk."""
        final = checkpoints.checkpoint_of(self.folder, index + 1)
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for prefix, some in ((_BYTES, learned.encoded), (_VALUES, learned.values)):
            for name, values in some.items():
                np.save(partial / f"{prefix}{name}.npy", values)
        facts = {"step": index + 1, "errors": [*learned.errors], "changed": learned.changed}
        checkpoints.seal_as(partial, final, facts)
        return self._read(final, facts)

    def of(self, index: int) -> Learned | None:
        """A layer that has been kept; None, with a word, for one whose files are not whole."""
        folder = checkpoints.checkpoint_of(self.folder, index + 1)
        if not folder.is_dir():
            return None
        facts = json_or_none(folder / checkpoints.CHECKPOINT_MANIFEST) or {}
        sealed = are_sealed(facts.get("files")) and not broken(folder, facts["files"])
        if not (sealed and _told(facts)):
            _log.warning("%s: not whole, the layer learns again", near(folder))
            return None
        return self._read(folder, facts)

    def _read(self, folder: Path, facts: Mapping[str, object]) -> Learned:
        read: dict[str, dict[str, np.ndarray]] = {_BYTES: {}, _VALUES: {}}
        for prefix, found in read.items():
            mode = "r" if prefix == _BYTES else None
            for file in sorted(folder.glob(f"{prefix}*.npy")):
                name = file.stem.removeprefix(prefix)
                found[name] = np.load(file, mmap_mode=mode, allow_pickle=False)
        before, after = facts["errors"]
        return Learned(read[_BYTES], read[_VALUES], (before, after), facts["changed"])


def _told(facts: Mapping[str, object]) -> bool:
    errors, changed = facts.get("errors"), facts.get("changed")
    numbers = isinstance(errors, list) and all(isinstance(one, float) for one in errors)
    return numbers and len(errors) == 2 and isinstance(changed, int)
