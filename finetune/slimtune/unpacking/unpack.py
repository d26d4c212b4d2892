"""GGUF file -> model folder, once: checked, unpacked under a lock, proven to tokenize as it did.

The folder is an artifact like any other, with a run.json; it is used again as long as the file is
the same by its fingerprint. A file of the same name with other content gets a folder of its own.
"""

import logging
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slimtune.artifacts import run_of, stage_folder
from slimtune.artifacts.files import broken, write_json
from slimtune.config import Config
from slimtune.console import first_process, near, note, size, would_write
from slimtune.errors import ResourceError
from slimtune.export.architecture import FACTORS, Architecture, read_architecture
from slimtune.inference.gguf_tokenizer import GgufTokens, put_first, tokens_of
from slimtune.inference.llama_cpp import LlamaCpp
from slimtune.models.folders import sampled
from slimtune.models.gguf_header import GgufHeader, damaged, read_gguf
from slimtune.models.served_decoding import own_decoding_of_gguf, write_generation_config
from slimtune.unpacking.gguf_config import family_of_file, read_config
from slimtune.unpacking.gguf_tokenizers import write_tokenizer
from slimtune.unpacking.gguf_weights import (
    loss_of,
    number_type,
    read_tensor_rows,
    require_tensors,
    write_weights,
)
from slimtune.unpacking.vocabulary_check import require_same_ids

STAGE = "unpack"
_VOCABULARY_PATIENCE = 120.0  # seconds for an answer of ids; a second is much
_PATIENCE = 6 * 3600.0  # seconds for another process of this run to unpack
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A file that can be unpacked: what its folder will hold."""

    header: GgufHeader
    tokens: GgufTokens
    config: dict
    architecture: Architecture
    names: dict[str, str]

    @property
    def bytes(self) -> int:
        width = 4 if number_type(self.header) == "float32" else 2
        return width * sum(self.header.tensors[name].elements for name in self.names)


def unpacked(file: Path, name: str, config: Config) -> Path | None:
    """The folder of a GGUF file, unpacked now or before; None in a dry run where it is neither.

    Raises InputError for a file that is damaged, or of an architecture, vocabulary or type that
    SlimTune does not know; LockedError where another run unpacks it.
    """
    header = read_gguf(file)
    mark = fingerprint(header)
    final = _place(config.model.unpacked_dir, name, mark)
    if _is_of(final, mark) and not (config.options.overwrite and _is_broken(final)):
        _log.info("%s: was unpacked into %s", near(file), near(final))
        return final
    if not first_process():
        return _wait(final, mark)
    plan = plan_unpacking(header)
    if config.options.dry_run:
        would_write(final, estimates={"on disk": size(plan.bytes), "memory": "under 1 GB"})
        note("the dry run ends here: what comes after this needs that folder")
        return None
    _unpack(plan, final, mark, config)
    return final


def fingerprint(header: GgufHeader) -> str:
    """A digest of a file: its size, its header, and 1 MB in pieces from all over its tensors."""
    file, length = header.file, header.file.stat().st_size
    first = min((tensor.offset for tensor in header.tensors.values()), default=length)
    return sampled(file, first)[:16]


def plan_unpacking(header: GgufHeader) -> Plan:
    """All checks that need neither tensors' values nor llama.cpp; InputError where one fails."""
    tokens = tokens_of(header)
    rope_factors = None
    if FACTORS in header.tensors:
        if header.tensors[FACTORS].elements > 1 << 12:
            raise damaged(header.file, f"{FACTORS} is longer than half a head")
        rope_factors = np.concatenate(list(read_tensor_rows(header, FACTORS))).reshape(-1)
    config = read_config(header, tokens, rope_factors)
    architecture = read_architecture(header.file, config)
    # As llama.cpp reads it, whatever class of transformers holds it then.
    shape = replace(architecture.shape, family=family_of_file(header))
    architecture = replace(architecture, shape=shape)
    names = require_tensors(header, architecture)
    return Plan(header, tokens, config, architecture, names)


def _unpack(plan: Plan, final: Path, mark: str, config: Config) -> None:
    file, loss = plan.header.file, loss_of(plan.header)
    note(f"{near(file)}: unpacking {plan.header.parameters:,} parameters into {near(final)}")
    started = time.perf_counter()
    with stage_folder(STAGE, final, config, inputs=[file]) as stage:
        # The vocabulary first: it is what most often cannot be unpacked, and takes a second.
        with LlamaCpp(file, slots=0, patience=_VOCABULARY_PATIENCE) as model:
            write_tokenizer(plan.header, plan.tokens, put_first(model, plan.tokens), stage.folder)
            texts = require_same_ids(model, stage.folder)
        kind = write_weights(plan.header, plan.architecture, plan.names, stage.folder)
        write_json(stage.folder / "config.json", plan.config | {"dtype": kind})
        own = own_decoding_of_gguf(file, plan.header.metadata)
        write_generation_config(stage.folder, own or config.generation)
        stage.metrics.update(
            fingerprint=mark,
            bits_per_weight=round(loss.bits, 3),
            types=loss.types,
            dtype=kind,
            texts_of_equal_ids=texts,
            source=_words_of(plan.header),
        )
    note(f"{near(final)}: {loss.words()}, {texts} texts get the ids of llama.cpp")
    if loss.quantised:
        note("caution: what quantising took away does not come back: it is not the original model")
    _log.info("unpacked in %.0f s", time.perf_counter() - started)


def _words_of(header: GgufHeader) -> dict[str, str]:
    """What the file says of where it comes from."""
    keys = ("name", "basename", "organization", "license", "base_model.0.repo_url")
    found = {key: header.metadata.get(f"general.{key}") for key in keys}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _place(parent: Path, name: str, mark: str) -> Path:
    """NAME, or NAME-FINGERPRINT where NAME is another file's folder or somebody's own."""
    plain = re.sub(r"[^\w.-]", "-", name).strip(".-") or "model"
    folder = parent / plain
    return folder if not folder.exists() or _is_of(folder, mark) else parent / f"{plain}-{mark[:8]}"


def _is_of(folder: Path, mark: str) -> bool:
    run = run_of(folder) if folder.is_dir() else None
    return bool(run) and run["stage"] == STAGE and run["metrics"].get("fingerprint") == mark


def _is_broken(folder: Path) -> bool:
    return broken(folder, run_of(folder)["files"]) is not None


def _wait(final: Path, mark: str) -> Path:
    """Until the first of the processes that run together has unpacked the file."""
    deadline = time.monotonic() + _PATIENCE
    while not _is_of(final, mark):
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{near(final)}: was not unpacked in {_PATIENCE / 3600:.0f} hours",
                "the first of the processes that run together was to do it",
                "unpack it with one process first, with any script and --dry-run left out",
            )
        time.sleep(0.5)
    return final
