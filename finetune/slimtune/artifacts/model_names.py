"""What a model is called when nobody says: after the model it began as, and what was done to it.

    SmolLM2-135M-Instruct, an adapter merged into it    smollm2-135m-instruct-finetuned
    /home/ann/support-bot/models/base, pruned           support-bot-pruned

Records say where a model comes from. A folder that many have (`merged_model`, `base`) tells
nothing: then the one around it counts, which is the project's in the end.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimtune.artifacts.records import run_of

SAMPLE = "slimtune-sample"  # whatever was done to it: the documents' commands name it
_SAMPLE_STAGE, _UNPACKED = "create_sample_data", "unpack"
_DONE = {
    "train_lora": "finetuned",
    "merge": "finetuned",
    "train_pruned_distilled": "finetuned",  # of the combined run only the merge is called so
    "model_pruning": "pruned",
    "knowledge_distillation": "distilled",
}
_MERGES = ("merge", "train_pruned_distilled")  # they read an adapter first, then its base
_NOT_TELLING = re.compile(
    r"base|teacher|student|final|models?|(full|merged|my)[_-]?model|lora[_-]?adapter|adapter"
    r"|(fine)?tuned|pruned|distilled|pruned[_-]distilled|merged|checkpoints?(-\d+)?|snapshots"
    r"|blobs|sha256-[0-9a-f]+|[0-9a-f]{40}|outputs?|results?|data|tmp|home|huggingface|hub"
)
_NAMELESS = "my-model"
_LONGEST = 50  # of the 80 characters that Ollama takes: steps, type and number come behind


def automatic_name(model: Path | str, adapter: Path | None = None) -> tuple[str, str]:
    """The name of a model, or of one with an adapter to be merged, and why; Ollama takes it."""
    steps = list(_way(str(model)))
    start, run = steps[-1]
    if run and run["stage"] == _SAMPLE_STAGE:
        return SAMPLE, "it goes back to the sample"
    done = [_DONE[one["stage"]] for _, one in reversed(steps) if one and one["stage"] in _DONE]
    done += ["finetuned"] if adapter else []
    name = own_name(start) or _NAMELESS
    reason = f"after {start}" if name != _NAMELESS else f"no folder of {start} has a telling name"
    return "-".join(dict.fromkeys([name, *done])), reason


def own_name(reference: str) -> str | None:
    """What a path or Hub id calls its model, in the letters that Ollama takes; None where nothing
    does. `.../models--HuggingFaceTB--SmolLM2-135M/snapshots/HASH` is smollm2-135m.
    """
    place = Path(reference.removesuffix(".gguf"))
    for one in (place, *place.parents):
        name = one.name.removeprefix("models--").rpartition("--")[2].lower()
        name = re.sub(r"[^a-z0-9_.]+", "-", name).strip("-.")[:_LONGEST].rstrip("-.")
        if one == Path.home():
            return None
        if name and not _NOT_TELLING.fullmatch(name):
            return name
    return None


def _way(model: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """What a model was made from, itself first: each with its record, the last has none to follow.

    What was unpacked keeps the name of its folder: the file's may be a digest.
    """
    seen = set()
    while True:
        seen.add(model)
        run = _record(Path(model)) if os.path.exists(model) else None
        yield model, run
        if run is None or run["stage"] in (_SAMPLE_STAGE, _UNPACKED):
            return
        sources = run["inputs"][1 if run["stage"] in _MERGES else 0 :]
        if not sources or sources[0]["path"] in seen:
            return
        model = sources[0]["path"]


def _record(model: Path) -> dict[str, Any] | None:
    """A model's own record; the sample's two models have one together, in the folder above."""
    run = run_of(model)
    if run is None and (above := run_of(model.parent)) and above["stage"] == _SAMPLE_STAGE:
        return above
    return run
